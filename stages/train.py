"""train: MAC-Loss on all tasks, then the export that every loader reads.

Inputs: ingested pairs, the distilled student. Steps: where `train.mine` asks for it, mine hard negatives with the
distilled student; train with the modality-adaptive contrastive loss (paper §1.4) on Ray Train with DeepSpeed, export,
check the exported directory against the trained weights. Output: `model/` with a model card, `parity.json`, and
`negatives/` where some were mined.
"""

from typing import Any, Literal

from pydantic import Field

from stages.context import Context
from stages.mine import Mine
from stages.params import Section, knob

VERSION = 1


class Params(Section):
    """The section `train`."""

    loss: Literal["mac", "infonce"] = "mac"
    steps: int = Field(300, ge=0, description="0 leaves the student as it was distilled")
    batch_size: int = Field(64, ge=2)
    smallest_task: int = Field(0, ge=0, description="repeat the queries of small tasks until an epoch has this many")
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.03, gt=0, description="τ_norm of MAC-Loss, τ of InfoNCE")
    hard_decay: float = Field(0.5, ge=0, description="r of τ_hard(t) = round(τ_norm · exp(-2 r min(½, t)), 3)")
    warmup: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    seed: int = Field(-1, ge=-1, description="of this stage's random choices; -1 takes the run's `seed`")
    mine: Mine = Mine()
    register_as: str = knob("puma", description="name in the MLflow model registry")
    register_alias: Literal["auto", "always", "never"] = knob(
        "auto", description="make it champion: if at least as good on the same test data; in any case; not at all"
    )
    checkpoint_every: int = knob(500, ge=1)
    log_every: int = knob(25, ge=1)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.learn.loop import Objective
    from stages.mine import mine
    from stages.training import student_stage

    params = context.params.train
    objective = Objective(loss=params.loss, temperature=params.temperature, hard_decay=params.hard_decay)
    model = context.inputs["distill"].local("model")
    mined = mine(context, model) if params.mine.per_query and params.steps else None
    return student_stage(context, params, model, None, objective, features=None, mined=mined)
