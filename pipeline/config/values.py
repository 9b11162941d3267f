"""Sections opened up into dotted paths: their fields, which have types and ranges, and values."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from stages.contract.params import Section


def walk_fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every section and every value below `section`."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if inner := section_of(field):
            yield from walk_fields(inner, f"{prefix}{name}.")


def walk_values(section: Section, prefix: str = "", inside_knob: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """(dotted path, value, is a knob) of every value, sections opened up; values are as JSON holds them."""
    for name, field in type(section).model_fields.items():
        value, is_knob = getattr(section, name), inside_knob or knob_field(field)
        if isinstance(value, Section):
            yield from walk_values(value, f"{prefix}{name}.", is_knob)
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value, is_knob


def knob_field(field: FieldInfo) -> bool:
    """Whether the field was declared with `knob` and stays out of the keys."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("knob"))


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that the field is; None for a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def is_section(field: FieldInfo) -> bool:
    """Whether the field is a section."""
    return section_of(field) is not None


def get_value(values: Mapping[str, Any], path: Iterable[str]) -> Any:
    """The value at a path of keys."""
    found: Any = values
    for key in path:
        found = found[key]
    return found
