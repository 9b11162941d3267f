"""distill: keep the first k layers of the backbone and learn from its cached deep-layer vectors.

Inputs: ingested pairs, the backbone, the teacher features. Steps: load the first k layers (deep layers are never
read), freeze the vision tower, train on feature loss + InfoNCE with DeepSpeed on Ray Train. Output: `model/`, a stock
checkpoint of k layers. PUMA's stage 1 runs the teacher live as a second full model in every step; cached vectors are
the same numbers, computed once, for the one wording of the instruction that they were computed with.
`distill.teacher=live` is the paper's way, and wordings vary then.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.contract.context import Context, StageError
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


class Params(Section):
    """The section `distill`."""

    steps: int = Field(300, ge=0, description="0 leaves the student as it was cut")
    batch_size: int = Field(64, ge=2)
    smallest_task: int = Field(0, ge=0, description="repeat the queries of small tasks until an epoch has this many")
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.05, gt=0)
    symmetric: bool = Field(
        False, description="in-batch candidates are to find their queries as well, as CLIP trains; else queries alone"
    )
    contrastive_weight: float = Field(0.9, ge=0)
    feature_weight: float = Field(
        0.1, ge=0, description="0 takes the teacher out of the loss; published: 0.01, with mse"
    )
    feature_loss: Literal["mse", "cosine", "relational"] = Field(
        "cosine", description="mse on states of any length, as published; relational compares cosines between rows"
    )
    teacher: Literal["cached", "live"] = Field(
        "cached", description="look the teacher's states up, or run it in every step, on instructions that vary"
    )
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


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages import backbone
    from stages.distributed.student import student_stage
    from stages.distributed.training import LiveTeacher

    params, source = context.params.distill, backbone.directory(context.inputs["backbone"])
    depth, layers = _choose_layers(context, source)
    print(f"distill: keeping {layers} of {depth} layers", file=sys.stderr, flush=True)
    features, live = context.inputs["features"], None
    if params.teacher == "live":
        features, live = None, LiveTeacher(source, features.read_json("features.json")["layer"])
    measures = student_stage(context, params, source, layers, objective(params), features, live=live)
    return {"layers": layers, "teacher_layers": depth, **measures}


def objective(params: Params) -> "Objective":
    """What the stage minimises."""
    from stages.learn.objective import Objective

    return Objective(
        loss="infonce",
        temperature=params.temperature,
        contrastive_weight=params.contrastive_weight,
        feature_loss=params.feature_loss,
        feature_weight=params.feature_weight,
        symmetric=params.symmetric,
    )


def _choose_layers(context: Context, source: Path) -> tuple[int, int]:
    """(the backbone's depth, the layers to keep): as configured, or as the depth curve allows.

    `auto` stands in the key as the word that it is: the plan is known before the curve is. Raises StageError where
    the backbone can't be cut to as many layers.
    """
    from stages.evaluation.depth import shallowest
    from stages.model.families import adapter_for
    from stages.model.prune import pruned_config

    student = context.params.student
    try:
        config = pruned_config(source, None)
        depth = config.text_config.num_hidden_layers
        if student.layers == "auto":
            curve = context.inputs["features"].read_json("depth_curve.json")
            return depth, shallowest(curve, student.max_loss, adapter_for(config.model_type).minimum_layers)
        layers = depth if student.layers == "full" else student.layers
        pruned_config(source, layers)
    except ValueError as error:
        raise StageError(str(error)) from error
    return depth, layers
