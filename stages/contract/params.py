"""The base of every stage's parameters.

A parameter either changes the stage's result, then it is part of the artifact's key, or it does not (worker counts,
batch sizes of inference, how often to log), then it is declared with `knob` and stays out of the key.
"""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of a recipe: frozen, typed, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def knob(default: Any, **constraints: Any) -> Any:
    """A field that cannot change the stage's result and therefore stays out of the artifact's key."""
    return Field(default, json_schema_extra={"knob": True}, **constraints)


class Cluster(Section):
    """How a run uses its machines. Precision and rows of a shard change vectors; no key has the rest."""

    workers: int = Field(1, ge=1, description="training processes (data-parallel ranks)")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for each training process")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs for each training process and each embedding actor")
    actors: int = Field(1, ge=1, description="embedding actors for features, index and evaluate")
    batch_size: int = knob(64, ge=1, description="rows that an embedding actor sends through the model at a time")
    rows_per_shard: int = Field(
        2048, ge=1, description="rows of an embedded file; a killed run repeats at most that many for each actor"
    )
    threads: int = Field(0, ge=0, description="torch threads of a process on CPU; 0 divides the cores")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    precision: str = Field("auto", pattern="^(auto|fp32|bf16)$", description="auto is bf16 on GPU and fp32 on CPU")
    max_failures: int = Field(
        1, ge=-1, description="restarts of a training job from its last checkpoint; 0 is none, -1 as many as it takes"
    )
    checkpoint_every: int = knob(100, ge=1, description="steps that a killed training repeats at most")
    log_every: int = knob(25, ge=1, description="steps of a training between two lines of its log")

    def chosen_precision(self) -> str:
        """fp32 or bf16: on CPU bf16 matmuls can be hundreds of times slower, so `auto` takes it on GPU only."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if self.gpus_per_worker > 0 else "fp32"

    def threads_each(self, processes: int) -> int:
        """Torch threads of one of `processes` processes on CPU: as configured, or the node's cores divided."""
        return self.threads or max(1, cores() // processes)


class Lora(Section):
    """LoRA's adapters in the decoder (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(0, ge=0, description="inner width of the adapters; 0 trains the whole decoder, without any")
    alpha: float = Field(0, ge=0, description="adapters are scaled by alpha / rank; 0 is 2 · rank, as published")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the adapters' input")

    @property
    def scale(self) -> float:
        """The factor on an adapter's output."""
        return self.alpha / self.rank if self.alpha else 2.0


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
