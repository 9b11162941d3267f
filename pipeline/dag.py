"""The pipeline: seven stages, what each reads, and which sections of the configuration may change its result.

    ingest ─┬─► features ─► distill ─► train ─┬─► index ─► evaluate
    backbone┴──────▲──────────▲───────────────┘ (teacher, for the comparison)

Written out instead of discovered: the tuple below is the whole graph, in the order in which it runs.
"""

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

    def load(self) -> ModuleType:
        """The stage's module; importing it is light, the heavy imports are inside its functions."""
        return import_module(self.module)


STAGES = (
    Stage("ingest", "stages.ingest", (), ("data", "seed")),
    Stage("backbone", "stages.backbone", ("ingest",), ("backbone", "seed")),
    Stage("features", "stages.features", ("ingest", "backbone"), ("features", "seed")),
    Stage("distill", "stages.distill", ("ingest", "backbone", "features"), ("student", "distill", "seed")),
    Stage("train", "stages.train", ("ingest", "distill"), ("train", "seed")),
    Stage("index", "stages.index", ("ingest", "train"), ("index",)),
    Stage("evaluate", "stages.evaluate", ("ingest", "backbone", "features", "train", "index"), ("evaluate",)),
)


CORPUS = (Stage("index", "stages.corpus", (), ("index", "student"), ("index", "student")),)
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
