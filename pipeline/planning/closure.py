"""The code that a stage is made of: its module, and every module of the same package that it comes to import.

    stages.train ─► stages.distributed.student ─► stages.learn.loop ─► …
         │                    └─► stages.export.card   IN_NO_KEY: neither hashed nor followed
         └ if TYPE_CHECKING: …                         only types: not followed either

Imports count wherever they stand, also inside functions. Only the standard library is imported here, so that any
Python can tell the keys.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.planning.syntax import Canonical, canonical, last_name, parse, statements

ROOT = Path(__file__).resolve().parents[2]
MARK = "IN_NO_KEY"
"""A module that assigns this at its top level is in no key, and what only it imports is in none either."""
SECTION = "stages.contract.params.Section"
"""The class of all settings: annotated fields of the classes that derive from it are settings."""


@dataclass(frozen=True)
class ModuleCode:
    """One file, read.

    Attributes:
        path: of the file.
        said: what its code says.
        marked: whether it says that it is in no key.
        imports: modules of the same package that it may load, each with the packages above it.
        bases: the classes that each class of the file derives from directly, by their whole names.
    """

    path: Path
    said: Canonical
    marked: bool
    imports: tuple[str, ...]
    bases: Mapping[str, tuple[str, ...]]


def code_parts(module: str, root: Path = ROOT, without: Collection[str] = ()) -> dict[str, str]:
    """{path below `root`: hash} of the module and of all modules of its package that it comes to import.

    Modules of `without`, and modules with the mark, are left out with all that only they import.
    """
    modules = closure(module, root, without)
    settings = settings_classes(modules)
    parts = {}
    for name, code in modules.items():
        own = {one for one in code.bases if f"{name}.{one}" in settings}
        parts[code.path.relative_to(root).as_posix()] = code.said.digest(own)
    return {path: parts[path] for path in sorted(parts) if parts[path]}


def closure(module: str, root: Path = ROOT, without: Collection[str] = ()) -> dict[str, ModuleCode]:
    """The modules whose code counts for `module`, by name."""
    modules: dict[str, ModuleCode] = {}
    waiting, seen = [module], {module, *without}
    while waiting:
        name = waiting.pop()
        path = module_file(name, root)
        if path is None:
            continue
        code = read_module(path, name, path.stat().st_mtime_ns)
        if code.marked:
            continue
        modules[name] = code
        waiting += set(code.imports) - seen
        seen |= set(code.imports)
    return modules


def module_file(name: str, root: Path) -> Path | None:
    """The file of a module or of a package's `__init__`; None where the name is a function or class in a module."""
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def is_marked(tree: ast.Module) -> bool:
    """Whether the module says of itself that it is in no key."""
    marks = (node.value for node in tree.body if isinstance(node, ast.Assign) and last_name(node.targets[0]) == MARK)
    return any(isinstance(value, ast.Constant) and value.value is True for value in marks)


@lru_cache(maxsize=1024)
def read_module(path: Path, name: str, modified: int) -> ModuleCode:
    """Reads one file. `modified` is the file's time, so that a long-lived process reads it again after a change."""
    code = path.read_bytes()
    tree = parse(code, str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports: set[str] = set()
    names: dict[str, str] = {}
    classes: list[ast.ClassDef] = []
    for node in statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= bound_names(node, package)
            imports |= imported_modules(node, package)
        elif isinstance(node, ast.ClassDef):
            classes.append(node)
    if b"import_module" in code:  # most files have none, and a look at every node costs as much as to parse them
        imports |= set(named_modules(tree))
    bases = {one.name: tuple(whole_name(base, names, name) for base in one.bases) for one in classes}
    top = name.partition(".")[0]
    followed = tuple(sorted(one for one in imports if one.partition(".")[0] == top))
    return ModuleCode(path, canonical(tree), is_marked(tree), followed, bases)


def named_modules(tree: ast.Module) -> Iterator[str]:
    """The modules that are imported by a name in quotes: `import_module("a.b")`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func, [ast.Constant(name)]) if last_name(func) == "import_module":
                yield str(name)


def imported_modules(node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """The modules that an import may load: `from a.b import c` loads a.b, its package a, and perhaps a.b.c."""
    names = set(bound_names(node, package).values())
    return {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}


def bound_names(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    """{name in the file: whole name of what it stands for}; `import a.b` counts as a.b by that name."""
    prefix = "" if isinstance(node, ast.Import) else f"{import_base(node, package)}."
    return {alias.asname or alias.name: f"{prefix}{alias.name}" for alias in node.names}


def import_base(node: ast.ImportFrom, package: str) -> str:
    """The module that names are imported from."""
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def whole_name(base: ast.expr, names: Mapping[str, str], module: str) -> str:
    """`params.Section` as `stages.contract.params.Section`, by the file's imports; other names are its own."""
    first, _, rest = ast.unparse(base).partition(".")
    return ".".join(filter(None, (names.get(first, f"{module}.{first}"), rest)))


def settings_classes(modules: Mapping[str, ModuleCode]) -> set[str]:
    """The classes that derive from `Section`, directly or through others, by their whole names."""
    bases = {f"{module}.{name}": found for module, code in modules.items() for name, found in code.bases.items()}
    settings = {SECTION}
    while grown := {name for name, found in bases.items() if name not in settings and settings & set(found)}:
        settings |= grown
    return settings
