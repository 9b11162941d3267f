"""train: MAC-Loss on all tasks; exports the student."""

from typing import Literal

from pydantic import Field

from stages.params import Section, knob

VERSION = 1


class Params(Section):
    """The section `train`."""

    loss: Literal["mac", "infonce"] = "mac"
    steps: int = Field(300, ge=0)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.03, gt=0, description="τ_norm of MAC-Loss, τ of InfoNCE")
    hard_decay: float = Field(0.5, ge=0, description="r of τ_hard(t) = round(τ_norm · exp(-2 r min(½, t)), 3)")
    warmup: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    register_as: str = knob("puma", description="name in the MLflow model registry")
    checkpoint_every: int = knob(200, ge=1)
    log_every: int = knob(20, ge=1)
