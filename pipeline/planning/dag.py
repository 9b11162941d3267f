"""The pipeline: seven stages, what each reads, and which sections of the configuration may change its result.

    ingest ─┬─► features ─► distill ─► train ─┬─► index ─► evaluate
    backbone┴──────▲──────────▲───────────────┘ (teacher, for the comparison)

    distill.data ──┴──────────┘ where `distill.data` is set: what the teacher reads and distillation learns from

Written out instead of discovered: the tuple below is the whole graph, in the order in which it runs.
"""

from collections.abc import Callable, Mapping
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
    reads: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    """{dotted path: value} of what it has to know of other stages' sections; no more than this is in its key."""

    def load(self) -> ModuleType:
        """The stage's module; importing it is light, the heavy imports are inside its functions."""
        return import_module(self.module)


OWN_DATA = "distill.data"
"""The section, inside another one, that has a stage of its own, and that stage."""
DRAWS = "distill.draws"
"""No setting: `distill.steps` × `distill.batch_size` as far as it counts, see `stages.learn.settings`. Its baseline is
that of these two."""
TAUGHT = "train.taught"
"""No setting: whether the last training reads the teacher's states. Its baseline is that it does not."""
PRECISION = "cluster.precision"
"""Stands in a key as what was chosen, not as `auto`: which of the two that is depends on the machines."""


def trains(config: Any) -> tuple[str, ...]:
    """A model computes."""
    return (PRECISION,)


def embeds(config: Any) -> tuple[str, ...]:
    """A model computes, on rows that a shard's size puts together."""
    return PRECISION, "cluster.rows_per_shard"


def trains_student(config: Any) -> tuple[str, ...]:
    """A student is trained; where negatives are mined for it, a model embeds first."""
    return embeds(config) if config.train.mine.per_query and config.train.steps else trains(config)


def trains_backbone(config: Any) -> tuple[str, ...]:
    """The backbone is trained here; one from outside that is not is only pointed to."""
    backbone = config.backbone
    return (PRECISION,) if backbone.source == "tiny" or backbone.tune.steps else ()


def draws(config: Any) -> Mapping[str, Any]:
    """How much of its data distillation will look up, and whether the last training looks the teacher's states up."""
    drawn = config.distill.draws if distils_by_cache(config) else 0
    known = {DRAWS: drawn, "distill.smallest_task": config.distill.smallest_task}
    return known | {TAUGHT: trained_by_teacher(config)}


def distils_by_cache(config: Any) -> bool:
    """Whether distillation needs what `features` has read of its rows: the states, or a live teacher's mean."""
    distill, features = config.distill, config.features
    centres = features.centre is True or (features.centre == "auto" and features.layer == "auto")
    return bool(distill.feature_weight and (distill.teacher == "cached" or centres))


def trained_by_teacher(config: Any) -> bool:
    """Whether the teacher's states weigh anything in the last training."""
    return bool(config.train.feature_weight and config.train.steps)


STAGES = (
    Stage("ingest", "stages.ingest", (), ("data", "seed")),
    Stage("backbone", "stages.backbone", ("ingest",), ("backbone", "seed"), machines=trains_backbone),
    Stage("features", "stages.features", ("ingest", "backbone"), ("features", "seed"), machines=embeds, reads=draws),
    Stage(
        "distill",
        "stages.distill",
        ("ingest", "backbone", "features"),
        ("student", "distill", "seed"),
        machines=trains,
    ),
    Stage("train", "stages.train", ("ingest", "distill"), ("train", "seed"), machines=trains_student),
    Stage("index", "stages.index", ("ingest", "train"), ("index",), machines=embeds),
    Stage(
        "evaluate",
        "stages.evaluate",
        ("ingest", "backbone", "features", "train", "index"),
        ("evaluate",),
        machines=embeds,
    ),
)


def reading(stages: tuple[Stage, ...], names: tuple[str, ...], *more: str) -> tuple[Stage, ...]:
    """The stages, those of these names with more inputs."""
    return tuple(replace(stage, inputs=(*stage.inputs, *more)) if stage.name in names else stage for stage in stages)


def with_own_data() -> tuple[Stage, ...]:
    """All stages where distillation has data of its own: the code of `ingest` once more, for whoever teaches by it."""
    own = Stage(OWN_DATA, "stages.ingest", (), (OWN_DATA, "seed"))
    first, *others = reading(STAGES, ("features", "distill"), OWN_DATA)
    return (first, own, *others)


WITH_OWN_DATA = with_own_data()

CORPUS = (Stage("index", "stages.distributed.corpus", (), ("index", "student"), ("index", "student"), embeds),)
"""The index of a user's corpus by a student that is there: nothing to ingest, to train or to evaluate."""


def stages_of(config: Any) -> tuple[Stage, ...]:
    """The stages of a run: all, or only the index where it has its own corpus.

    What a setting makes a stage read besides, the stage depends on under that setting alone: `train` the teacher's
    states where they weigh anything, `index` the teacher and its layer where the candidates are its own.
    """
    if config.index.corpus:
        return CORPUS
    stages = WITH_OWN_DATA if config.distill.data.kind else STAGES
    if trained_by_teacher(config):
        stages = reading(stages, ("train",), "features")
    if config.index.candidates == "teacher":
        stages = reading(stages, ("index",), "backbone", "features")
    return stages


def keyed_section(path: str) -> str:
    """The section that puts a setting into the keys of stages: its first word, or the section with its own stage."""
    return OWN_DATA if path.startswith(f"{OWN_DATA}.") else path.partition(".")[0]


def descendants(stages: tuple[Stage, ...], name: str) -> set[str]:
    """Every stage that reads `name`, directly or through others."""
    found: set[str] = set()
    for stage in stages:  # in running order, so one pass is enough
        if any(source == name or source in found for source in stage.inputs):
            found.add(stage.name)
    return found
