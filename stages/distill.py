"""distill: keep some layers of the backbone, its first k, and learn from its cached deep-layer vectors.

Inputs: ingested pairs, or `distill.data` where that is set; the backbone, the teacher features. Steps: load the first
k layers (deep layers are never read), freeze the vision tower, train on feature loss + InfoNCE with DeepSpeed on Ray
Train. Output: `model/`, a stock checkpoint of k layers. PUMA's stage 1 runs the teacher live as a second full model in
every step; cached vectors are the same numbers, computed once, for the one wording of the instruction that they were
computed with. `distill.teacher=live` is the paper's way, and wordings vary then.
"""

import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.contract.context import Context
from stages.contract.params import Section
from stages.learn.settings import Alignment, FineTuning

if TYPE_CHECKING:
    from stages.learn.objective import Objective

VERSION = 1


class Student(Section):
    """The section `student`."""

    model: str = Field("", description="index.corpus: models:/NAME@ALIAS, an artifact of train, or a directory")
    layers: int | Literal["auto", "full"] | tuple[int, ...] = Field(
        3,
        description="decoder layers to keep: the first so many, or those of a list, counted from 1; `full` keeps all, "
        "`auto` the fewest first ones that lose at most max_loss",
    )
    max_loss: float = Field(
        0.1, ge=0, lt=1, description="share of the full depth's hit@5 that layers=auto may lose before training"
    )


class Params(Alignment, FineTuning):
    """The section `distill`."""

    contrastive_weight: float = Field(
        0.9, ge=0, description="of InfoNCE in the loss; 0 learns from the teacher alone, and from no label"
    )
    feature_weight: float = Field(
        0.1, ge=0, description="0 takes the teacher out of the loss, and it reads no rows; published: 0.01, with mse"
    )
    teacher: Literal["cached", "live"] = Field(
        "cached",
        description="look the teacher's states up, or run it in every step, on instructions that vary; no row is read "
        "before the steps then, but for a mean that is taken off",
    )


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.distributed.student import student_stage
    from stages.distributed.training import LiveTeacher
    from stages.model import checkpoint
    from stages.model.depth import choose_layers

    params, backbone = context.params.distill, context.inputs["backbone"]
    features, data = context.inputs["features"], context.inputs.get("distill.data", context.inputs["ingest"])
    depth, layers = choose_layers(checkpoint.settings(backbone), context.params.student, features)
    which = f"layers {', '.join(map(str, layers))}" if isinstance(layers, tuple) else layers
    print(f"distill: keeping {which} of {depth} layers", file=sys.stderr, flush=True)
    teacher: Any = features
    if params.teacher == "live":
        read = features.read_json("features.json")
        teacher = LiveTeacher(checkpoint.place(backbone), read["layer"], read.get("mean"))
    asked = {"teacher": teacher, "ingest": data}
    asked["subset"] = (params.draws, context.params.seed)
    measures = student_stage(context, params, backbone, layers, objective(params), **asked)
    return {"teacher_layers": depth, **measures}


def objective(params: Params) -> "Objective":
    """What the stage minimises."""
    from stages.learn.objective import Objective

    return Objective(
        loss="infonce",
        temperature=params.temperature,
        contrastive_weight=params.contrastive_weight,
        feature_loss=params.feature_loss,
        feature_weight=params.feature_weight,
        feature_temperature=params.feature_temperature,
        symmetric=params.symmetric,
    )
