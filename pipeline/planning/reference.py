"""`docs/settings.md`, written from the fields of the configuration by `make settings`.

A test compares the file with what this writes, so that the page and the code say the same.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.config.messages import expected
from pipeline.config.sections import Config
from pipeline.config.values import walk_fields, walk_values
from pipeline.planning.dag import CORPUS, OWN_DATA, STAGES, WITH_OWN_DATA, Stage, keyed_section
from pipeline.planning.plan import LOCATIONS, PRECISION
from stages.evaluation.markdown_table import markdown_table

COMMAND = "make settings"
HEAD = f"""# Settings

All {{count}} settings of a run. A recipe (`pipeline/recipes/`) sets them as nested YAML, the command line as
`key=value`: `train.loss=infonce`. An unknown name is refused, and the nearest valid one is shown.

**In the key of** names the stages that run again when the setting changes; what reads them runs again too. "–" cannot
change a result, and no stage runs again for it. A setting at the default
that it first had is in no key, so that a new one keeps old artifacts.

This page is written by `{COMMAND}`.
"""
OWN_CORPUS = ("index.corpus", "student.model")
PRODUCT = ("distill.steps", "distill.batch_size")
TAUGHT_BY = "train.feature_weight"
COLUMNS = ("setting", "takes", "default", "in the key of", "what it does")


def reference() -> str:
    """The page: one table for the settings of the run as a whole, then one for each section."""
    rows = list(setting_rows())
    sections = dict.fromkeys(section_of(path) for path, _ in rows)
    tables = [
        f"## {f'`{section}`' if section else 'The run as a whole'}\n"
        + markdown_table([COLUMNS, *(cells for path, cells in rows if section_of(path) == section)])
        for section in sections
    ]
    return "\n\n".join([HEAD.strip().format(count=len(rows)), *tables]) + "\n"


def section_of(path: str) -> str:
    """The section of a dotted path; empty for what stands at the top."""
    return path.rpartition(".")[0]


def setting_rows() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(dotted path, its row's cells) of every setting."""
    fields = dict(walk_fields(Config))
    for path, value, is_knob in walk_values(Config()):
        covered = "–" if is_knob else key_part(path)
        yield path, (f"`{path}`", expected(fields[path]), default(value), covered, fields[path].description or "")


def default(value: Any) -> str:
    """A default as an override spells it."""
    if value == "":
        return "(empty)"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def key_part(path: str) -> str:
    """The stages whose key the setting at `path` is part of, and how where its value is not what counts."""
    if path == PRECISION:
        return "every stage in which a model computes, as the precision that was chosen"
    if path in PRODUCT:
        return "distill; features, as steps × batch_size rounded up to two digits"
    if path == TAUGHT_BY:
        return "train; features, as whether it weighs anything"
    section = keyed_section(path)
    stages = CORPUS if path in OWN_CORPUS else WITH_OWN_DATA if section == OWN_DATA else STAGES
    names = ", ".join(one.name for one in stages if section in one.sections or path in others(one)) or "–"
    return f"{names}, by content" if path in LOCATIONS else names


def others(stage: Stage) -> set[str]:
    """The settings of other sections that are in a stage's key."""
    return {*stage.machines(Config()), *stage.reads(Config())}


if __name__ == "__main__":
    sys.stdout.write(reference())
