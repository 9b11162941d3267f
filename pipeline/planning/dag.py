"""The pipeline: seven stages, what each reads, and which sections of the configuration may change its result.

    ingest ─┬─► features ─► distill ─► train ─┬─► index ─► evaluate
    backbone┴──────▲──────────▲───────────────┘ (teacher, for the comparison)

Written out instead of discovered: the tuple below is the whole graph, in the order in which it runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One step: a module with `VERSION`, `Params` and `run(context)`, its inputs and its sections."""

    name: str
    module: str
    inputs: tuple[str, ...]
    sections: tuple[str, ...]
    outside: tuple[str, ...] = ()
    """Sections that name data outside the store, with which `fingerprint` is asked; empty is the first section."""
    machines: Callable[[Any], tuple[str, ...]] = lambda config: ()
    """Which settings of the section `cluster` change its result under this configuration."""

    def load(self) -> ModuleType:
        """The stage's module; importing it is light, the heavy imports are inside its functions."""
        return import_module(self.module)


PRECISION = "cluster.precision"
"""Stands in a key as what was chosen, not as `auto`: which of the two that is depends on the machines."""


def trains(config: Any) -> tuple[str, ...]:
    """A model computes."""
    return (PRECISION,)


def embeds(config: Any) -> tuple[str, ...]:
    """A model computes, on rows that a shard's size puts together."""
    return PRECISION, "cluster.rows_per_shard"


def trains_backbone(config: Any) -> tuple[str, ...]:
    """The backbone is made here; one from outside is only pointed to."""
    return (PRECISION,) if config.backbone.source == "tiny" else ()


STAGES = (
    Stage("ingest", "stages.ingest", (), ("data", "seed")),
    Stage("backbone", "stages.backbone", ("ingest",), ("backbone", "seed"), machines=trains_backbone),
    Stage("features", "stages.features", ("ingest", "backbone"), ("features", "seed"), machines=embeds),
    Stage(
        "distill",
        "stages.distill",
        ("ingest", "backbone", "features"),
        ("student", "distill", "seed"),
        machines=trains,
    ),
    Stage("train", "stages.train", ("ingest", "distill"), ("train", "seed"), machines=trains),
    Stage("index", "stages.index", ("ingest", "train"), ("index",), machines=embeds),
    Stage(
        "evaluate",
        "stages.evaluate",
        ("ingest", "backbone", "features", "train", "index"),
        ("evaluate",),
        machines=embeds,
    ),
)


CORPUS = (Stage("index", "stages.distributed.corpus", (), ("index", "student"), ("index", "student"), embeds),)
"""The index of a user's corpus by a student that is there: nothing to ingest, to train or to evaluate."""
TEACHERS_INPUTS = ("ingest", "backbone", "features", "train")
"""What the index reads where its candidates are the teacher's; features knows the layer."""


def stages_of(config: Any) -> tuple[Stage, ...]:
    """The stages of a run: all, or only the index where it has its own corpus."""
    if config.index.corpus:
        return CORPUS
    stages = STAGES
    if config.index.candidates == "teacher":
        stages = tuple(replace(one, inputs=TEACHERS_INPUTS) if one.name == "index" else one for one in stages)
    return stages


def descendants(stages: tuple[Stage, ...], name: str) -> set[str]:
    """Every stage that reads `name`, directly or through others."""
    found: set[str] = set()
    for stage in stages:  # in running order, so one pass is enough
        if any(source == name or source in found for source in stage.inputs):
            found.add(stage.name)
    return found
