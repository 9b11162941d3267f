"""distill: keep the first k layers of the backbone and learn from its cached deep-layer vectors.

Inputs: ingested pairs, the backbone, the teacher features. Steps: load the first k layers (deep layers are never
read), freeze the vision tower, train on feature loss + InfoNCE with DeepSpeed on Ray Train. Output: `model/`, a stock
checkpoint of k layers. PUMA's stage 1 runs the teacher live as a second full model in every step; cached vectors are
the same numbers, computed once, for the one wording of the instruction that they were computed with.
`distill.teacher=live` is the paper's way, and wordings vary then.
"""

import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.contract.context import Context, InputError
from stages.contract.params import Adapter, Section, knob

if TYPE_CHECKING:
    from stages.learn.objective import Objective

VERSION = 1


class Student(Section):
    """The section `student`."""

    model: str = Field("", description="index.corpus: models:/NAME@ALIAS, an artifact of train, or a directory")
    layers: int | Literal["auto", "full"] = Field(
        3, description="decoder layers to keep; `full` keeps all, `auto` the fewest that lose at most max_loss"
    )
    max_loss: float = Field(
        0.1, ge=0, lt=1, description="share of the full depth's hit@5 that layers=auto may lose before training"
    )


class FeatureLosses(Section):
    """Further feature losses: feature_weight * (feature_scale * feature_loss + Σ factor * loss)."""

    mse: float = Field(0, ge=0)
    cosine: float = Field(0, ge=0)
    relational: float = Field(0, ge=0)


class Params(Section):
    """The section `distill`."""

    steps: int = Field(300, ge=0, description="0 leaves the student as it was cut")
    batch_size: int = Field(64, ge=2)
    smallest_task: int = Field(0, ge=0, description="repeat the queries of small tasks until an epoch has this many")
    repeat_positives: int = Field(
        1, ge=1, description="a query of several positives comes so often in an epoch at most, once for each"
    )
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.05, gt=0)
    symmetric: bool = Field(
        False, description="in-batch candidates are to find their queries as well, as CLIP trains; else queries alone"
    )
    contrastive_weight: float = Field(0.9, ge=0)
    feature_weight: float = Field(0.1, ge=0)
    feature_loss: Literal["mse", "cosine", "relational"] = Field(
        "cosine", description="mse on states of any length, as published; relational compares cosines between rows"
    )
    teacher: Literal["cached", "live"] = Field(
        "cached", description="look the teacher's states up, or run it in every step, on instructions that vary"
    )
    feature_scale: float = Field(
        1.0, gt=0, description="factor on the feature loss; the paper's code uses 0.05 with mse"
    )
    also: FeatureLosses = FeatureLosses()
    first_layer_rate: float = Field(1.0, gt=0, description="factor on the learning rate of the first decoder layer")
    warmup: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    muon_rate: float = Field(
        0.0, ge=0, description="Muon trains the layers' matrices at this rate (0.02 is usual, with clip=0); 0 is AdamW"
    )
    adapter: Literal["full", "lora"] = Field("full", description="train the whole decoder, or LoRA adapters in it")
    lora: Adapter = Adapter(dropout=0.05)
    seed: int = Field(-1, ge=-1, description="of this stage's random choices; -1 takes the run's `seed`")
    chunk: int = knob(0, ge=0, description="rows embedded at a time, by GradCache; 0 is the whole batch")
    checkpoint_every: int = knob(100, ge=1, description="steps that a killed run repeats at most")
    log_every: int = knob(25, ge=1)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.distributed.student import student_stage
    from stages.distributed.training import LiveTeacher
    from stages.model import checkpoint
    from stages.model.depth import choose_layers

    params, source = context.params.distill, checkpoint.directory(context.inputs["backbone"])
    features, live = context.inputs["features"], None
    depth, layers = choose_layers(source, context.params.student, features)
    print(f"distill: keeping {layers} of {depth} layers", file=sys.stderr, flush=True)
    known = features.read_json("features.json")
    check_alike(known["normed"], params)
    if params.teacher == "live":
        features, live = None, LiveTeacher(source, known["layer"], known["normed"], known.get("before_mlp", False))
    measures = student_stage(context, params, source, layers, objective(params), features, live=live)
    return {"layers": layers, "teacher_layers": depth, **measures}


def objective(params: Params) -> "Objective":
    """What the stage minimises."""
    from stages.learn.objective import Objective

    return Objective(
        loss="infonce",
        temperature=params.temperature,
        contrastive_weight=params.contrastive_weight,
        feature_weights=feature_weights(params),
        symmetric=params.symmetric,
    )


def feature_weights(params: Params) -> dict[str, float]:
    """The weight of each feature loss in the objective; without those that weigh nothing."""
    factors = params.also.model_dump()
    factors[params.feature_loss] += params.feature_scale
    weights = {kind: params.feature_weight * factor for kind, factor in factors.items()}
    return {kind: weight for kind, weight in weights.items() if weight}


def check_alike(normed: bool, params: Params) -> None:
    """Refuses to pull states after the final norm to states before it: their scale and direction differ by design.

    Cosines between rows are compared by `relational`, whatever the states are.
    """
    direct = [kind for kind in feature_weights(params) if kind != "relational"]
    if direct and not normed and params.steps:
        raise InputError(
            f"features.normed=false gives states before the final norm, and distillation with {' and '.join(direct)} "
            "compares them to states after it; set features.normed=true, or distill.feature_loss=relational"
        )
