"""The pipeline: seven stages, what each reads, and which sections of the configuration may change its result.

    ingest ─┬─► features ─► distill ─► train ─┬─► index ─► evaluate
    backbone┴──────▲──────────▲───────────────┘ (teacher, for the comparison)

Written out instead of discovered: the tuple below is the whole graph, in the order in which it runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    computes: Callable[[Any], bool] = lambda config: False
    """Whether a model computes in it under this configuration, so that the precision belongs to its key."""

    def load(self) -> ModuleType:
        """The stage's module; importing it is light, the heavy imports are inside its functions."""
        return import_module(self.module)


def always(config: Any) -> bool:
    """For stages that no configuration spares a model."""
    return True


def trains_backbone(config: Any) -> bool:
    """Whether the backbone is made here; one from outside is only pointed to."""
    return config.backbone.source == "tiny"


STAGES = (
    Stage("ingest", "stages.ingest", (), ("data", "seed")),
    Stage("backbone", "stages.backbone", ("ingest",), ("backbone", "seed"), computes=trains_backbone),
    Stage("features", "stages.features", ("ingest", "backbone"), ("features", "seed"), computes=always),
    Stage(
        "distill",
        "stages.distill",
        ("ingest", "backbone", "features"),
        ("student", "distill", "seed"),
        computes=always,
    ),
    Stage("train", "stages.train", ("ingest", "distill"), ("train", "seed"), computes=always),
    Stage("index", "stages.index", ("ingest", "train"), ("index",), computes=always),
    Stage(
        "evaluate",
        "stages.evaluate",
        ("ingest", "backbone", "features", "train", "index"),
        ("evaluate",),
        computes=always,
    ),
)


CORPUS = (Stage("index", "stages.distributed.corpus", (), ("index", "student"), ("index", "student"), always),)
"""The index of a corpus of one's own by a student that is there: nothing to ingest, to train or to evaluate."""


def stages_of(config: Any) -> tuple[Stage, ...]:
    """The stages of a run: all, or only the index where it has its own corpus."""
    return CORPUS if config.index.corpus else STAGES


def descendants(stages: tuple[Stage, ...], name: str) -> set[str]:
    """Every stage that reads `name`, directly or through others."""
    found: set[str] = set()
    for stage in stages:  # in running order, so one pass is enough
        if any(source == name or source in found for source in stage.inputs):
            found.add(stage.name)
    return found
