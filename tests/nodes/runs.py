"""The runs on nodes that share nothing: what each shows, and its settings."""

from dataclasses import dataclass

HOME = "/home"
"""The home directory of each node; only the head's holds anything. Not the tests' own, which stays out of sight."""
STEPS = 6
SPREAD = ("cluster.workers=2", "cluster.cpus_per_worker=2", "cluster.actors=4", "cluster.checkpoint_every=3")
"""Of a node's three CPUs a training process takes two, and an actor one: neither fits on one node alone."""


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        name: what it shows.
        recipe: that it begins with.
        settings: beside its recipe, its store and its tracking server.
    """

    name: str
    recipe: str
    settings: tuple[str, ...]


DEMO = Run(
    "the demo, with few scenes and steps and all of the method: ZeRO-2, LoRA, mining, the layer that finds best",
    "demo",
    (
        *("data.scenes.train=48", "data.scenes.val=16", "data.scenes.test=16", "data.scenes.size=56"),
        *(f"{section}.steps={STEPS}" for section in ("backbone.tiny", "distill", "train")),
        *("distill.lora.rank=8", "train.mine.per_query=2", "train.mine.margin=1", "features.layer=auto"),
        *("cluster.zero_stage=2", "cluster.log_every=1", *SPREAD),
    ),
)
CORPUS = Run(
    "a corpus that only the head has, indexed by the student of the registry",
    "demo",
    (f"index.corpus={HOME}/pictures", "student=models:/puma@champion", "cluster.actors=4"),
)
CHECKPOINT = Run(
    "a hub's directory that only the head has as backbone and live teacher, the depth chosen, LoRA in the last stage",
    "smoke",
    (
        *("backbone.source=local", f"backbone.model={HOME}/teacher", "backbone.max_pixels=3136"),
        *("student.layers=auto", "distill.teacher=live", "train.lora.rank=4", "train.feature_weight=0.1", *SPREAD),
    ),
)
SOURCES = Run(
    "M-BEIR's layout in the bucket; distillation on pictures, by vectors, that only the head has",
    "smoke",
    (
        *("data.kind=mbeir", "data.path=s3://bucket/mbeir"),
        *("distill.data.kind=corpus", f"distill.data.path={HOME}/pictures", "distill.batch_size=4"),
        *(f"features.teacher={HOME}/vectors", "evaluate.teacher=false", *SPREAD),
    ),
)
JOINED = Run(
    "three training processes, for which there is no room until a third node joins in the middle",
    "smoke",
    (
        *("--until", "features", "cluster.workers=3", "cluster.cpus_per_worker=2", "cluster.actors=7", "seed=3"),
        *(f"{section}.batch_size=6" for section in ("backbone.tiny", "distill", "train")),
    ),
)
RUNS = (DEMO, CORPUS, CHECKPOINT, SOURCES, JOINED)
