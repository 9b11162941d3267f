"""What every training may be asked: which samples meet in a step, and how the optimizer goes.

The stages' sections inherit these, so that a setting is written once and keeps its flat path (`train.learning_rate`),
and they are handed on whole, to `PairSampler`, `fit` and `start_engine`. Light: reading a recipe loads no torch.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.contract.params import Lora, Section, knob


class Sampling(Section):
    """Which samples meet in a step, and what of them is shown."""

    batch_size: int = Field(64, ge=2, description="queries of a step over all workers, each with one of its positives")
    smallest_task: int = Field(
        0, ge=0, description="repeat a small task's queries until an epoch has this many, as UniIR up-samples M-BEIR"
    )
    sub_batch: int = Field(
        0,
        ge=0,
        description="neighbours in a batch of one task, as in VLM2Vec-V2's interleaved batches; 0 mixes freely",
    )
    least_crop: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a training image that a random crop keeps at least (open_clip takes 0.9); 1 shows all",
    )


class Optimisation(Section):
    """AdamW with a linear warm-up and a cosine decay, or Muon beside it."""

    steps: int = Field(300, ge=0, description="0 leaves the model as it was")
    learning_rate: float = Field(1e-3, gt=0, description="the peak")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps that the rate takes to its peak")
    weight_decay: float = Field(0.01, ge=0, description="of matrices alone")
    clip: float = Field(1.0, ge=0, description="norm of the gradient that is let through; 0 lets all through")
    muon_rate: float = Field(
        0.0,
        ge=0,
        description="Muon (Jordan et al. 2024) trains the layers' matrices at this rate, 0.02 is usual; 0 is AdamW",
    )
    chunk: int = knob(
        0,
        ge=0,
        description="rows embedded at a time, by exact GradCache; 0 is the whole batch. Each draws dropout of its own",
    )

    @model_validator(mode="after")
    def muon_works_without_clipping(self) -> Self:
        """DeepSpeed clips by the norm of Muon's steps at some ZeRO stages and by that of the gradients at others."""
        if self.muon_rate and self.clip:
            raise ValueError(f"muon_rate works without clipping, and clip is {self.clip:g}; set clip=0")
        return self

    def rate(self, *, muon: bool, first_layer: bool) -> float:
        """Peak learning rate of a parameter, by its optimizer and by whether it is of the first decoder layer."""
        return self.muon_rate if muon else self.learning_rate


class Training(Sampling, Optimisation):
    """A contrastive training."""

    temperature: float = Field(0.05, gt=0, description="τ of InfoNCE")
    symmetric: bool = Field(
        False,
        description="candidates find their queries as well, as in CLIP and in sentence-transformers' symmetric losses",
    )

    @property
    def draws(self) -> int:
        """Samples that the steps draw, rounded up to two digits: a few steps more still come to the same rows."""
        exact = self.steps * self.batch_size
        unit = 10 ** max(0, len(str(exact)) - 2)
        return -(-exact // unit) * unit


class Alignment(Section):
    """How far a teacher's states pull the student's."""

    feature_weight: float = Field(
        0.0, ge=0, description="of the distance to the teacher's states in the loss; 0 needs none"
    )
    feature_loss: Literal["mse", "cosine", "relational", "kl"] = Field(
        "cosine",
        description="mse on states of any length, as published; relational compares cosines between rows, kl the "
        "softmax of them",
    )
    feature_temperature: float = Field(0.05, gt=0, description="τ of kl, of student and teacher")
    turn: bool = Field(
        True,
        description="of mse and cosine: first turn the teacher's states towards the student's, by the one rotation "
        "that brings them nearest; what lies beside what stays, and a later training goes on with it",
    )

    @property
    def turns(self) -> bool:
        """Whether it matters to the loss which way the teacher's states point, and they are to be turned."""
        return bool(self.feature_weight) and self.turn and self.feature_loss in ("mse", "cosine")


class FineTuning(Training):
    """A training of trained layers: the vision tower is frozen, and with LoRA all but the adapters."""

    first_layer_rate: float = Field(
        1.0, gt=0, description="factor on the learning rate of the first decoder layer; PUMA distils with 0.5"
    )
    lora: Lora = Lora()
    seed: int = Field(-1, ge=-1, description="of this stage's random choices; -1 takes the run's `seed`")

    def rate(self, *, muon: bool, first_layer: bool) -> float:
        """Peak learning rate of a parameter, by its optimizer and by whether it is of the first decoder layer."""
        return super().rate(muon=muon, first_layer=first_layer) * (self.first_layer_rate if first_layer else 1)
