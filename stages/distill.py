"""distill: keep the first k layers and learn from the cached teacher vectors."""

from typing import Literal

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Student(Section):
    """The section `student`."""

    layers: int = Field(3, description="decoder layers that the student keeps")


class Params(Section):
    """The section `distill`."""

    steps: int = Field(300, ge=0)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.05, gt=0)
    contrastive_weight: float = Field(0.9, ge=0)
    feature_weight: float = Field(0.1, ge=0)
    feature_loss: Literal["mse", "cosine"] = "cosine"
    feature_scale: float = Field(1.0, gt=0, description="factor on the feature loss; the paper's code uses 0.05 with mse")
    warmup: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    checkpoint_every: int = knob(200, ge=1)
    log_every: int = knob(20, ge=1)
