"""From a recipe and overrides to a configuration; what is wrong with it is said before anything runs or is written."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.checks import check_combinations
from pipeline.config.messages import choices, suggestion, value_message, wrong_value
from pipeline.config.recipes import Settings, read_settings
from pipeline.config.sections import Config
from pipeline.config.values import get_value, is_section, section_of, walk_fields, walk_values
from stages.contract.context import InputError

LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes: what file systems allow for a name, and a little less than Linux and its like for a path."""


def load_config(recipe: str = "demo", overrides: Iterable[str] = ()) -> Config:
    """The validated configuration of a recipe (name or file) and dotted overrides.

    Raises InputError, one line, for an unknown recipe, key, value or combination.
    """
    config, settings = read_config(recipe, overrides)
    check_combinations(config, settings)
    return config


def read_config(recipe: str, overrides: Iterable[str]) -> tuple[Config, Settings]:
    """The configuration, each value checked by itself, and where each came from. Raises InputError, one line."""
    fields = dict(walk_fields(Config))
    settings = read_settings(
        recipe, map(expand_student, overrides), lambda path: path in fields and fields[path].annotation is str
    )
    check_keys(settings, fields)
    try:
        config = Config.model_validate(settings.values)
    except ValidationError as error:
        raise InputError(value_message(error, settings, fields)) from None
    for path, value, _ in walk_values(config):
        if not is_finite(value):
            raise InputError(wrong_value(path, value, fields[path], settings.origin(path)))
    return config, settings


def expand_student(override: str) -> str:
    """`student=models:/puma@champion` as `student.model=…`; a mapping stays what it is, and so does anything else."""
    name, equals, text = override.partition("=")
    return f"student.model={text}" if name == "student" and equals and not text.startswith("{") else override


def check_keys(settings: Settings, fields: Mapping[str, FieldInfo]) -> None:
    """Refuses unknown keys (naming the nearest), values where a section stands, and what no field can hold."""
    for path, origin in (*settings.empty.items(), *settings.origins.items()):
        check_path(path, origin, fields)
    for path, origin in settings.empty.items():
        if not is_section(fields[path]):
            raise InputError(wrong_value(path, {}, fields[path], origin))
    for path, origin in settings.origins.items():
        value = get_value(settings.values, path.split("."))
        if (section := section_of(fields[path])) and value != {}:
            inner = ", ".join(section.model_fields)
            raise InputError(f"'{path}' is a section in {origin}; set one of its keys: {inner}")
        if isinstance(value, bool) and {int, float} & set(choices(fields[path])):
            raise InputError(wrong_value(path, value, fields[path], origin))
        if isinstance(value, str) and not is_plain(value):
            raise InputError(f"{path} holds a character that no name can hold, {value!r}, in {origin}; leave it out")
        if isinstance(value, str) and is_too_long(value):
            raise InputError(f"{path} holds a longer name than a file can have, in {origin}; give a shorter one")


def check_path(path: str, origin: str, fields: Mapping[str, FieldInfo]) -> None:
    """Refuses a key that is unknown, or that lies below a value."""
    steps = path.split(".")
    for depth in range(1, len(steps) + 1):
        known = ".".join(steps[:depth])
        if known not in fields:
            raise InputError(f"unknown key '{path}' in {origin}{suggestion(known, path, fields)}")
        if depth < len(steps) and not is_section(fields[known]):
            raise InputError(f"'{known}' is one value and has no key '{steps[depth]}' in {origin}; set {known}=…")


def is_finite(value: Any) -> bool:
    """Whether neither a number nor one of a list is infinite or NaN, which `inf` and `nan` become as numbers."""
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(one) for one in values if isinstance(one, float))


def is_plain(text: str) -> bool:
    """Whether a file could be called by the text: no NUL, and no half of a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def is_too_long(text: str) -> bool:
    """Whether no path can be the text: a name in it, or all of it. Addresses elsewhere have other limits."""
    names = [] if "://" in text else os.fsencode(text).split(b"/")
    return any(len(name) > LONGEST_NAME for name in names) or sum(map(len, names)) > LONGEST_PATH
