"""What a stage is made of besides parameters and inputs: its version, its code, and data from outside the store.

The code of a stage is its module and every module of the same package that it imports, directly or through others,
also inside functions. Each file is hashed as its syntax tree without docstrings, and comments are not in the tree, so
that explaining code better voids no artifact. Written back as text before hashing: unlike bytecode or a dumped tree it
hardly depends on the version of Python, so a laptop and a cluster agree on keys.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pipeline.planning.dag import Stage
from pipeline.planning.plan import Source
from stages.contract.params import Section

ROOT = Path(__file__).resolve().parents[2]


def read_sources(stages: tuple[Stage, ...], config: Section, root: Path = ROOT) -> dict[str, Source]:
    """The sources of every stage; imports the (light) stage modules.

    A stage that reads data from outside has `fingerprint`, asked with the sections `Stage.outside`; None is no such
    data.
    Raises InputError where the outside data isn't there.
    """
    found = {}
    for stage in stages:
        module = stage.load()
        fingerprint = getattr(module, "fingerprint", None)
        asked = [getattr(config, name) for name in stage.outside or stage.sections[:1]]
        data = fingerprint(*asked) if fingerprint else None
        found[stage.name] = Source(module.VERSION, code_parts(stage.module, root), data)
    return found


def code_parts(module: str, root: Path = ROOT) -> dict[str, str]:
    """{path below `root`: hash} of the module and of all modules of its package that it comes to import."""
    parts: dict[str, str] = {}
    waiting = [module]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        path = module_file(name, root)
        if path is None:
            continue
        digest, imported = read_module(path, name, path.stat().st_mtime_ns)
        if digest:
            parts[path.relative_to(root).as_posix()] = digest
        fresh = set(imported) - seen
        seen |= fresh
        waiting += fresh
    return dict(sorted(parts.items()))


def module_file(name: str, root: Path) -> Path | None:
    """The file of a module or of a package's `__init__`; None where the name is a function or class in a module."""
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@lru_cache(maxsize=1024)
def read_module(path: Path, name: str, modified: int) -> tuple[str, tuple[str, ...]]:
    """(hash, imported names of the same package) of one file; the hash of a file without code is empty.

    `modified` is the file's time, so that a long-lived process reads it again after a change.
    """
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported: set[str] = set()
    for node in statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= imported_names(node, package)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    text = ast.unparse(tree)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12] if text.strip() else ""
    top = name.partition(".")[0]
    return digest, tuple(sorted(found for found in imported if found.partition(".")[0] == top))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all statements inside it; expressions, which hold no imports, are not entered."""
    yield node
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, block, ())
        for child in inner if isinstance(inner, list) else ():
            yield from statements(child)


def imported_names(node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """The modules that an import may load: `from a.b import c` loads a.b, its package a, and perhaps a.b.c."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
