"""train: MAC-Loss on all tasks, then the export that every loader reads.

Inputs: ingested pairs, the distilled student. Steps: where `train.mine` asks for it, mine hard negatives with the
distilled student; train with the modality-adaptive contrastive loss (paper §1.4) on Ray Train with DeepSpeed, export,
check the exported directory against the trained weights. Output: `model/` with a model card, `parity.json`, and
`negatives/` where some were mined.

With `train.feature_weight` the teacher's states are an input as well, and pull the student's on (jina-embeddings-v5
trains with both terms). They were read for one wording of each instruction, so queries keep the first; hard negatives
have none and count in the contrastive loss alone.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.contract.context import Artifact, Context
from stages.contract.params import Section, knob
from stages.learn.settings import Alignment, FineTuning

if TYPE_CHECKING:
    from stages.learn.objective import Objective

VERSION = 1


class Mine(Section):
    """The section `train.mine`."""

    per_query: int = Field(0, ge=0, description="hard negatives mined for each train query; 0 mines none")
    margin: float = Field(
        0.95, gt=0, le=1, description="a negative's cosine is below this share of the query's farthest positive's"
    )


class Params(Alignment, FineTuning):
    """The section `train`."""

    loss: Literal["mac", "infonce", "mamcl", "learnable", "mac_learnable"] = Field(
        "mac",
        description="mamcl masks candidates of other modalities than the target's; learnable trains τ as CLIP does, "
        "mac_learnable both temperatures of MAC-Loss, without their schedule",
    )
    temperature: float = Field(
        0.03, gt=0, description="τ_norm of MAC-Loss, τ of InfoNCE and MAMCL; where a learnable one starts"
    )
    hard_temperature: float = Field(0, ge=0, description="where τ_hard starts; 0 is `temperature`, as published")
    hard_decay: float = Field(0.5, ge=0, description="r of τ_hard(t) = start · exp(-2 r min(until, t)), to 3 decimals")
    hard_until: float = Field(0.5, ge=0, le=1, description="share of the training after which τ_hard stays")
    hard_negatives: int = Field(
        -1, ge=-1, description="hard negatives of a query that join its steps, given or mined; -1 is mine.per_query"
    )
    matryoshka: tuple[int, ...] = Field(
        (), description="leading dimensions of a vector that must also serve as one; evaluate reports each"
    )
    mine: Mine = Mine()
    check_loaders: bool = Field(
        True, description="read the export by every loader here; a student that was not is not registered"
    )
    register_as: str = knob("puma", description="name in the MLflow model registry")
    register_alias: Literal["auto", "always", "never"] = knob(
        "auto", description="make it champion: if at least as good on the same test data; in any case; not at all"
    )


def unused_modules(params: Params) -> tuple[str, ...]:
    """What a training without mined negatives does not come to."""
    return () if params.mine.per_query else ("stages.mining.mine",)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.distributed.rotation import read_rotation
    from stages.distributed.student import student_stage
    from stages.mining.mine import mine_negatives

    params = context.params.train
    distilled = context.inputs["distill"]
    mined = mine_negatives(context, distilled) if params.mine.per_query and params.steps else None
    negatives = params.mine.per_query if params.hard_negatives == -1 else params.hard_negatives
    asked = {"mined": mined, "hard_negatives": negatives, "rotation": read_rotation(distilled)}
    asked |= teaching(context.inputs.get("features"))
    return student_stage(context, params, distilled, None, objective(params), **asked)


def teaching(features: Artifact | None) -> dict[str, Any]:
    """The teacher of this stage, and where its states of `data` lie, which distillation may not have learnt from."""
    if features is None:
        return {}
    return {"teacher": features, "states": "labelled" if features.files("labelled") else "features"}


def objective(params: Params) -> "Objective":
    """What the stage minimises."""
    from stages.learn.objective import Objective

    return Objective(
        loss=params.loss,
        temperature=params.temperature,
        hard_temperature=params.hard_temperature,
        hard_decay=params.hard_decay,
        hard_until=params.hard_until,
        feature_loss=params.feature_loss,
        feature_weight=params.feature_weight,
        feature_temperature=params.feature_temperature,
        dims=tuple(sorted(set(params.matryoshka))),
        symmetric=params.symmetric,
    )
