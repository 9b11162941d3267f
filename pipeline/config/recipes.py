"""Recipe files and overrides, merged into one nested dictionary that remembers where each value came from.

A recipe is a YAML file of the configuration's sections; `extends: other` starts from another recipe. Overrides are
dotted: `train.loss=infonce`. Nothing is checked here against the configuration's fields, that is `config.py`; what is
kept is the origin of each value, so that an error can say which file or which override to mend.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.contract.context import InputError

NO_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises: of its own, of the types that `!!int x` calls, and on brackets a thousand deep."""
RECIPES = Path(__file__).parents[1] / "recipes"


class Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number, `yes`, `no`, `on` and `off` are words, and a key may stand only once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way to name the forms of scalars
        first: [(tag, form) for tag, form in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for twice in {repr(name) for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML implements, reads 1e-3 as text, 010 as eight, 12:30 as 750, `no` as false and
# 2026-01-01 as a date. The rules of YAML 1.2 surprise nobody.
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Settings:
    """Nested values and, for each dotted path, the recipe file or the override that set it."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, path: str) -> str:
        """Where the value at `path` (or the nearest section around it, or a value inside it) was set."""
        above = [path.rsplit(".", cut)[0] for cut in range(path.count(".") + 1)]
        inside = [known for known in self.origins if known.startswith(f"{path}.")]
        return next((self.origins[known] for known in above + inside if known in self.origins), "the defaults")

    def set(self, path: str, value: Any, origin: str) -> None:
        """Sets one value; a mapping is merged key by key."""
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self.set(f"{path}.{name}" if path else str(name), inner, origin)
            return
        *sections, last = path.split(".")
        place = self.values
        for section in sections:
            inner = place.get(section)
            place[section] = place = inner if isinstance(inner, dict) else {}
        place[last] = value
        for known in list(self.origins):  # what this value takes the place of
            if known.startswith(f"{path}.") or path.startswith(f"{known}."):
                del self.origins[known]
        self.origins[path] = origin


def read_settings(recipe: str, overrides: Iterable[str], is_text: Callable[[str], bool]) -> Settings:
    """The recipe (a name or a path of a YAML file), then the overrides from left to right.

    `is_text(path)` tells which fields hold text, so that `backbone.revision=1234567` stays the text it is.
    Raises InputError for an unknown recipe, a file that is not a YAML mapping, and an override without `key=`.
    """
    settings = Settings()
    for path in reversed(recipe_chain(recipe)):
        settings.set("", {name: value for name, value in read_yaml(path).items() if name != "extends"}, str(path))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
            raise InputError(f"'{override}' is not an override; write key=value, for example train.steps=100")
        value = parse_scalar(text, override)
        value = text if is_text(name) and isinstance(value, bool | int | float) else value
        settings.set(name, value, f"override {override}")
    return settings


def recipe_chain(recipe: str) -> list[Path]:
    """The recipe's file, then the file that it extends, and so on."""
    chain: list[Path] = [recipe_file(recipe)]
    while base := read_yaml(chain[-1]).get("extends"):
        beside = chain[-1].parent / f"{base}"
        parent = beside.resolve() if beside.is_file() else recipe_file(str(base))
        if parent in chain:
            raise InputError(f"{chain[-1]}: 'extends: {base}' goes round in a circle; let one recipe stand alone")
        chain.append(parent)
    return chain


def recipe_file(recipe: str) -> Path:
    """The file of a recipe given by its name or its path."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if recipe in names:
        return RECIPES / f"{recipe}.yaml"
    if Path(recipe).is_file():
        return Path(recipe).resolve()
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        raise InputError(f"there is no recipe file {recipe} (relative paths start from {Path.cwd()})")
    raise InputError(f"there is no recipe '{recipe}'{nearest(recipe, names)}; known: {', '.join(names)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    except NO_YAML as error:
        raise InputError(f"{path} is not valid YAML: {one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} is not a recipe; write sections such as 'train:' with their keys below")
    return content


def parse_scalar(text: str, override: str) -> Any:
    """The value of an override: a YAML scalar, list or mapping; what YAML can't read as one is the text itself."""
    try:
        return yaml.load(text, Loader) if text else ""
    except yaml.YAMLError:
        if text[:1] in "[{\"'":
            raise unreadable(override) from None
        return text
    except NO_YAML:
        raise unreadable(override) from None


def unreadable(override: str) -> InputError:
    """What to say of an override whose value is neither YAML nor the text itself."""
    return InputError(f"the value in '{override[:200]}' is not valid YAML; check its brackets and quotes")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(error: object) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())
