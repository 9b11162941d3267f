"""distill: keep the first k layers of the backbone and learn from its cached deep-layer vectors.

Inputs: ingested pairs, the backbone, the teacher features. Steps: load the first k layers (deep layers are never
read), freeze the vision tower, train on feature loss + InfoNCE with DeepSpeed on Ray Train. Output: `model/`, a stock
checkpoint of k layers. PUMA's stage 1 runs the teacher live as a second full model in every step; cached vectors are
the same numbers, computed once.
"""

from typing import Any, Literal

from pydantic import Field

from stages.context import Context, StageError
from stages.params import Section, knob

VERSION = 1


class Student(Section):
    """The section `student`."""

    layers: int = Field(3, description="decoder layers that the student keeps")


class Params(Section):
    """The section `distill`."""

    steps: int = Field(300, ge=0, description="0 leaves the student as it was cut")
    batch_size: int = Field(64, ge=2)
    smallest_task: int = Field(0, ge=0, description="repeat the queries of small tasks until an epoch has this many")
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.05, gt=0)
    contrastive_weight: float = Field(0.9, ge=0)
    feature_weight: float = Field(0.1, ge=0)
    feature_loss: Literal["mse", "cosine"] = "cosine"
    feature_scale: float = Field(
        1.0, gt=0, description="factor on the feature loss; the paper's code uses 0.05 with mse"
    )
    warmup: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    chunk: int = knob(0, ge=0, description="rows embedded at a time, by GradCache; 0 is the whole batch")
    checkpoint_every: int = knob(500, ge=1)
    log_every: int = knob(25, ge=1)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages import backbone
    from stages.learn.loop import Objective
    from stages.training import student_stage

    params, layers = context.params.distill, context.params.student.layers
    source = backbone.directory(context.inputs["backbone"])
    try:
        depth = _check_depth(source, layers)
    except ValueError as error:
        raise StageError(str(error)) from error
    objective = Objective(
        loss="infonce",
        temperature=params.temperature,
        contrastive_weight=params.contrastive_weight,
        feature_weight=params.feature_weight * params.feature_scale,
        feature_loss=params.feature_loss,
    )
    measures = student_stage(context, params, source, layers, objective, features=context.inputs["features"])
    return {"layers": layers, "teacher_layers": depth, **measures}


def _check_depth(source: Any, layers: int) -> int:
    """The backbone's depth; raises ValueError where it can't be cut to `layers`."""
    from stages.model.prune import pruned_config

    depth = pruned_config(source, None).text_config.num_hidden_layers
    pruned_config(source, layers)
    return depth
