"""What a wrong key or value is answered with: one line that says what, where and how to fix it."""

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.recipes import Settings
from pipeline.config.values import is_section
from pipeline.wording import nearest, one_line


def suggestion(wrong: str, path: str, fields: Mapping[str, FieldInfo]) -> str:
    """The nearest valid key: by its whole path, among its neighbours, by its last word; else all its neighbours."""
    above = wrong.rpartition(".")[0]
    beside = [known for known in fields if known.rpartition(".")[0] == above]
    leaves = {known.rpartition(".")[2]: known for known in fields}
    last = path.rpartition(".")[2]
    return (
        nearest(path, fields)
        or nearest(wrong, beside)
        or (f"; did you mean '{leaves[last]}'?" if last in leaves else "")
        or f"; known: {', '.join(beside)}"
    )


def value_message(error: ValidationError, settings: Settings, fields: Mapping[str, FieldInfo]) -> str:
    """The first of pydantic's errors as one line."""
    first = error.errors()[0]
    path = ".".join(str(step) for step in first["loc"])
    while path not in fields and path:
        path = path.rpartition(".")[0]
    if not path or is_section(fields[path]):  # a section's own validator spoke
        return f"{path or 'the configuration'}: {one_line(first['msg']).removeprefix('Value error, ')}"
    return wrong_value(path, first["input"], fields[path], settings.origin(path))


def wrong_value(path: str, value: Any, field: FieldInfo, origin: str) -> str:
    """`train.steps must be a whole number ≥ 0, not 'many', in override train.steps=many`."""
    words = [word for kind in choices(field) if get_origin(kind) is Literal for word in get_args(kind)]
    near = nearest(str(value), words)
    shown = "nothing" if value in (None, "") else repr(value)
    return f"{path} must be {expected(field)}, not {shown}, in {origin}{near}"


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """The types of a field: of `int | Literal["auto"]` both, of others the one."""
    return get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)


def type_in_words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) or "(empty)" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each {type_in_words(get_args(kind)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: its types and its range."""
    kind = " or ".join(map(type_in_words, choices(field)))
    for rule in field.metadata:
        if pattern := getattr(rule, "pattern", None):
            return "one of " + ", ".join(pattern.strip("^$()").split("|"))
    filled = ", not empty" if any(getattr(rule, "min_length", None) for rule in field.metadata) else ""
    return f"{kind} {' and '.join(limits_in_words(field.metadata))}".strip() + filled


def limits_in_words(rules: Iterable[Any]) -> list[str]:
    """A range in words, one for each limit."""
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("multiple_of", "a multiple of"))
    limits = []
    for rule in rules:
        limits += [f"{sign} {getattr(rule, name)}" for name, sign in signs if getattr(rule, name, None) is not None]
        limits += limits_in_words(rule.metadata) if isinstance(rule, FieldInfo) else []
    return limits
