"""The configuration of a run: one closed, frozen tree whose sections belong to their stages.

Each section's class stands in the stage's module, beside the code that reads it; here they only meet. Everything that
is wrong with a configuration is said in one line: what, where, how to mend, before anything runs or is written.
"""

import math
import os
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.checks import check_combinations
from pipeline.config.recipes import Settings, nearest, one_line, read_settings
from pipeline.config.values import is_section, walk_fields
from stages.backbone import Params as Backbone
from stages.contract.context import InputError
from stages.contract.params import Cluster, Section, knob
from stages.distill import Params as Distill
from stages.distill import Student
from stages.evaluate import Params as Evaluate
from stages.features import Params as Features
from stages.index import Params as Index
from stages.ingest import Params as Data
from stages.train import Params as Train


class Config(Section):
    """Everything that a run can be told. Relative paths start from the current directory."""

    store: str = knob(".puma/store", min_length=1, description="directory (or s3:// prefix) of the artifacts")
    store_endpoint: str = knob("", description="S3 server of the store; empty is AWS_ENDPOINT_URL(_S3), else AWS")
    tracking_uri: str = knob("", description="MLflow; empty is MLFLOW_TRACKING_URI, else sqlite below .puma/")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every random choice")
    data: Data = Data()
    backbone: Backbone = Backbone()
    features: Features = Features()
    student: Student = Student()
    distill: Distill = Distill()
    train: Train = Train()
    index: Index = Index()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()


def load_config(recipe: str = "demo", overrides: Iterable[str] = ()) -> Config:
    """The validated configuration of a recipe (name or file) and dotted overrides.

    Raises InputError, one line, for an unknown recipe, key, value or combination.
    """
    fields = dict(walk_fields(Config))
    settings = read_settings(
        recipe, map(spell_out, overrides), lambda path: path in fields and fields[path].annotation is str
    )
    config = check_values(settings, fields)
    check_combinations(config, settings)
    return config


def check_values(settings: Settings, fields: Mapping[str, FieldInfo]) -> Config:
    """The configuration as far as each value can be judged by itself. Raises InputError, one line."""
    check_keys(settings, fields)
    try:
        return Config.model_validate(settings.values)
    except ValidationError as error:
        raise InputError(value_message(error, settings, fields)) from None


def spell_out(override: str) -> str:
    """`student=models:/puma@champion` as `student.model=…`; a mapping stays what it is, and so does anything else."""
    name, equals, text = override.partition("=")
    return f"student.model={text}" if name == "student" and equals and not text.startswith("{") else override


def check_keys(settings: Settings, fields: Mapping[str, FieldInfo]) -> None:
    """Refuses unknown keys (naming the nearest), values where a section stands, and what no field can hold."""
    for path, origin in settings.origins.items():
        steps = path.split(".")
        for depth in range(1, len(steps) + 1):
            known = ".".join(steps[:depth])
            if known not in fields:
                raise InputError(f"unknown key '{path}' in {origin}{suggestion(known, path, fields)}")
            if depth < len(steps) and not is_section(fields[known]):
                raise InputError(f"'{known}' is one value and has no key '{steps[depth]}' in {origin}; set {known}=…")
        value = get_value(settings.values, path)
        if is_section(fields[path]) and value != {}:
            inner = ", ".join(fields[path].annotation.model_fields)
            raise InputError(f"'{path}' is a section in {origin}; set one of its keys: {inner}")
        if isinstance(value, bool) and {int, float} & set(choices(fields[path])):
            raise InputError(wrong_value(path, value, fields[path], origin))
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(wrong_value(path, value, fields[path], origin))
        if isinstance(value, str) and not is_plain(value):
            raise InputError(f"{path} holds a character that no name can hold, {value!r}, in {origin}; leave it out")


def is_plain(text: str) -> bool:
    """Whether a file could be called by the text: no NUL, and no half of a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def get_value(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path."""
    for step in path.split("."):
        values = values[step]
    return values


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


def spell_type(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each {spell_type(get_args(kind)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: its types and its range."""
    kind = " or ".join(map(spell_type, choices(field)))
    for rule in field.metadata:
        if pattern := getattr(rule, "pattern", None):
            return "one of " + ", ".join(pattern.strip("^$()").split("|"))
    filled = ", not empty" if any(getattr(rule, "min_length", None) for rule in field.metadata) else ""
    return f"{kind} {' and '.join(spell_limits(field.metadata))}".strip() + filled


def spell_limits(rules: Iterable[Any]) -> list[str]:
    """A range in words, one for each limit."""
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("multiple_of", "a multiple of"))
    limits = []
    for rule in rules:
        limits += [f"{sign} {getattr(rule, name)}" for name, sign in signs if getattr(rule, name, None) is not None]
    return limits
