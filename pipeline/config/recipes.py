"""Recipe files and overrides, merged into one nested dictionary that remembers where each value came from.

A recipe is a YAML file of the configuration's sections; `extends: other` starts from another recipe. Overrides are
dotted: `train.loss=infonce`. Nothing is checked here against the configuration's fields, that is `load.py`; what is
kept is the origin of each value, so that an error can say which file or which override to correct.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError

from pipeline.wording import nearest, one_line
from stages.contract.context import InputError

NO_YAML = (YAMLError, ValueError, TypeError, AttributeError, RecursionError)
"""What ruamel.yaml raises: of its own, of the types that `!!int x` calls, and on brackets a thousand deep."""
RECIPES = Path(__file__).parents[1] / "recipes"


class Constructor(SafeConstructor):
    """Safe YAML 1.2 in which a date is text, as that version says, a key stands once, and no value holds itself."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise ConstructorError(
                problem="an alias stands inside the value that it names", problem_mark=node.start_mark
            )
        return super().construct_object(node, deep=True)

    def construct_yaml_timestamp(self, node: Any, values: Any = None) -> str:
        super().construct_yaml_timestamp(node, values)
        return node.value

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            raise ConstructorError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
        return True


Constructor.add_constructor("tag:yaml.org,2002:timestamp", Constructor.construct_yaml_timestamp)


@dataclass(frozen=True)
class Settings:
    """Nested values and, for each dotted path, the recipe file or the override that set it.

    `empty` are the paths that were given `{}`, which sets nothing: they have to be keys all the same.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)

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
            if path and not value:
                self.empty[path] = origin
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

    `is_text(path)` is true of fields that hold text, so that `backbone.revision=1234567` stays the text it is.
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
    chain: list[Path] = [find_yaml("recipe", recipe, RECIPES)]
    while base := read_yaml(chain[-1]).get("extends"):
        beside = chain[-1].parent / f"{base}"
        parent = beside.resolve() if os.path.isfile(beside) else find_yaml("recipe", str(base), RECIPES)
        if parent in chain:
            raise InputError(f"{chain[-1]}: 'extends: {base}' goes round in a circle; let one recipe stand alone")
        chain.append(parent)
    return chain


def find_yaml(kind: str, name: str, directory: Path) -> Path:
    """The file of a recipe or a grid (`kind`) given by its name in the directory, or by its path."""
    names = sorted(path.stem for path in directory.glob("*.yaml"))
    if name in names:
        return directory / f"{name}.yaml"
    if os.path.isfile(name):  # false, where `Path.is_file` raises, also for a name that no file can have
        return Path(name).resolve()
    if os.path.isdir(name):
        raise InputError(f"{kind} {name} is a directory; give a YAML file in it, such as {Path(name) / 'my.yaml'}")
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise InputError(f"there is no {kind} file {name} (relative paths start from {Path.cwd()})")
    raise InputError(f"there is no {kind} '{name}'{nearest(name, names)}; known: {', '.join(names)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    except NO_YAML as error:
        raise InputError(f"{path} is not valid YAML: {one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} is not a recipe; write sections such as 'train:' with their keys below")
    return content


def parse_yaml(text: str) -> Any:
    """The content of a YAML text. Not PyYAML: by YAML 1.1 `1e-3` is text, `010` eight, `12:30` 750 and `no` false."""
    reader = YAML(typ="safe", pure=True)  # the one in C knows YAML 1.1 only
    reader.Constructor = Constructor
    return reader.load(text)


def parse_scalar(text: str, override: str) -> Any:
    """The value of an override: a YAML scalar, list or mapping; what YAML can't read as one is the text itself.

    So is a text without quotes, in which YAML would take what follows ` #` for a comment: here it is part of a name.
    """
    written = text[:1] in tuple("[{\"'!")
    try:
        value = parse_yaml(text) if text else ""
        return text.strip() if isinstance(value, str) and not written else value
    except NO_YAML as error:
        if isinstance(error, YAMLError) and not written:
            return text
        line = f"the value in '{override[:200]}' is not valid YAML; check its brackets and quotes"
        raise InputError(line) from None
