"""What a file of code says, without what cannot change a result: a canonical text of its syntax tree, to be hashed.

Written by hand and not by `ast.unparse` or `ast.dump`, which differ between versions of Python: a laptop and a
cluster have to agree on keys. For the same reason only the standard library is imported here. What is left out, and
why, stands in `pipeline.planning.sources`.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeGuard

UNSAID = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params"}
"""Fields of nodes that are left out: types; what follows from the place in the tree; what not every Python has."""
FIELD_KINDS = {"InitVar", "KW_ONLY"}
"""Annotations that a dataclass acts upon."""
ONLY_TYPES = {"__future__", "collections.abc", "typing"}
"""Modules of which annotations alone need names; their classes never compute anything here."""


@dataclass(frozen=True)
class Canonical:
    """What a module's code says.

    Attributes:
        text: all of it but the annotated names in bodies of classes.
        fields: those, each as (class, text): fields of a dataclass, or settings.
    """

    text: str
    fields: tuple[tuple[str, str], ...]

    def digest(self, settings: Collection[str] = ()) -> str:
        """12 hex digits; empty where the code says nothing.

        Args:
            settings: classes whose fields are settings, which count by their values and not by their code.
        """
        said = [self.text, *(f"{owner}.{text}" for owner, text in self.fields if owner not in settings)]
        return hashlib.sha256("".join(said).encode()).hexdigest()[:12] if any(said) else ""


def parse(code: bytes, name: str = "<code>") -> ast.Module:
    """The syntax tree of a file without the statements, and parts of them, that cannot change a result."""
    tree = ast.parse(code, filename=name)
    strip(tree)
    return tree


def canonical(tree: ast.Module) -> Canonical:
    """What a module says, of the tree that `parse` gives, which loses the annotated names in bodies of classes."""
    fields = tuple(taken_fields(tree))
    return Canonical("".join(spelled(tree.body)) if tree.body else "", fields)


def taken_fields(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(class, text) of each annotated name in the body of a class; takes them out of the tree."""
    for one in statements(tree):
        if isinstance(one, ast.ClassDef):
            yield from ((one.name, field_text(child)) for child in one.body if is_field(child))
            one.body = [child for child in one.body if not is_field(child)]


def is_field(node: ast.AST) -> TypeGuard[ast.AnnAssign]:
    """Whether a statement in a class is a field: a class variable and a private attribute are none, but its code."""
    if not isinstance(node, ast.AnnAssign) or last_name(node.target).startswith("_"):
        return False
    return "ClassVar" not in {last_name(part) for part in ast.walk(node.annotation)}


def field_text(field: ast.AnnAssign) -> str:
    """An annotated name in a class: its default, and of its type what makes it another kind of field."""
    kinds = sorted(FIELD_KINDS & {last_name(part) for part in ast.walk(field.annotation)})
    return "".join(spelled([*kinds, field.target, field.value]))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all statements inside it; expressions, which hold no statements, are not entered."""
    yield node
    for _, block in blocks(node):
        for child in block:
            yield from statements(child)


def blocks(node: ast.AST) -> Iterator[tuple[str, list[Any]]]:
    """(field, statements, handlers or cases) of each block directly inside a node."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield name, block


def strip(node: ast.AST) -> None:
    """Takes out of all blocks inside a node what cannot change a result."""
    for name, block in blocks(node):
        kept = [left for child in block for left in what_counts(child, isinstance(node, ast.ClassDef))]
        kept = list(with_sorted_imports(kept))
        setattr(node, name, kept)
        for child in kept:
            strip(child)


def with_sorted_imports(block: list[Any]) -> Iterator[Any]:
    """The statements with imports that follow each other in one order, for formatters sort them."""
    for are_imports, run in groupby(block, lambda node: isinstance(node, ast.Import | ast.ImportFrom)):
        statements = list(run)
        if are_imports:
            for node in statements:
                node.names.sort(key=lambda alias: (alias.name, alias.asname or ""))
            statements.sort(key=lambda node: "".join(spelled(node)))
        yield from statements


def what_counts(node: ast.AST, in_class: bool) -> list[ast.AST]:
    """What stands for a statement, a handler or a case: itself as a rule, nothing where it only describes."""
    match node:
        case ast.If() if last_name(node.test) == "TYPE_CHECKING":
            return [left for child in node.orelse for left in what_counts(child, in_class)]
        case ast.Pass():
            return []
        case ast.Expr() if only_speaks(node.value):
            return []
        case ast.ImportFrom(level=0) if node.module in ONLY_TYPES:
            return []
        case ast.AnnAssign() if not in_class:
            return [ast.Assign([node.target], node.value)] if node.value else []
        case ast.Raise():
            without_message(node)
        case ast.Assert():
            node.msg = None
    return [node]


def only_speaks(value: ast.expr) -> bool:
    """Whether an expression that stands alone is a string (any constant), or a call that tells a person something."""
    if isinstance(value, ast.Constant):
        return True
    if not isinstance(value, ast.Call) or any(isinstance(part, ast.NamedExpr) for part in ast.walk(value)):
        return False
    match value.func:
        case ast.Name("print"):
            files = [option.value for option in value.keywords if option.arg == "file"]
            return all(last_name(file) in ("stdout", "stderr") for file in files)
        case ast.Name("say") | ast.Attribute(attr="say"):
            return True
        case ast.Attribute(attr="write" | "flush", value=ast.Attribute(value=ast.Name("sys"))):
            return True
    return False


def without_message(node: ast.Raise) -> None:
    """Leaves of `raise SomeError(…) from cause` the kind of error: it ends a stage, so its words are in no artifact.

    An exception that is not called an error, such as `BadField`, is a verdict on a row, and the row keeps its words.
    """
    kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    if kind is not None and last_name(kind).endswith("Error"):
        node.exc, node.cause = kind, None


def last_name(node: ast.AST) -> str:
    """`c` of the expressions `c` and `a.b.c`; empty for any other."""
    return str(getattr(node, "id", "") or getattr(node, "attr", ""))


def spelled(value: Any) -> list[str]:
    """The words of a node, or of a field of one, in their order: what differs in meaning differs in words."""
    words: list[str] = []
    spell(value, words)
    return words


def spell(value: Any, words: list[str]) -> None:
    """Appends the words of `spelled`."""
    if isinstance(value, ast.Constant):
        words.append(f"{type(value.value).__name__} {value.value!a};")  # in ASCII: what !r prints depends on Python
    elif isinstance(value, ast.AST):
        words.append(f"{type(value).__name__}(")
        for name in value._fields:
            field = list(joined(value.values)) if isinstance(value, ast.JoinedStr) else getattr(value, name, None)
            if name not in UNSAID and field is not None and field != []:
                words.append(f"{name}=")
                spell(field, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for one in value:
            spell(one, words)
        words.append("]")
    else:
        words.append(f"{value};")


def joined(parts: list[ast.expr]) -> Iterator[ast.expr]:
    """The parts of an f-string with neighbouring texts in one, and without the empty ones that Python 3.12 adds."""
    text = ""
    for part in parts:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        if text:
            yield ast.Constant(text)
        text = ""
        yield part
    if text:
        yield ast.Constant(text)
