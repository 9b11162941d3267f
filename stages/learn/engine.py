"""DeepSpeed around a module: optimizer, schedule, ZeRO, and full weights back out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stages.learn.schedules import learning_rate_factor
from stages.model import compat

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay, or Muon beside it.

    Attributes:
        steps: optimizer steps of the whole training.
        batch_size: queries of a step over all ranks.
        learning_rate: peak.
        warmup: share of the steps that the warm-up takes.
        weight_decay: on matrices only.
        clip: gradient norm at which to clip; 0 is off, as it must be with Muon. Always passed on, DeepSpeed 0.19.8
            clips at 1.0 by default.
        zero_stage: DeepSpeed ZeRO stage.
        bf16: compute in bfloat16.
        chunk: rows that are embedded at a time, by GradCache; 0 embeds the whole batch in one pass. It decides the
            memory of a step and no result.
        first_layer_rate: factor on the learning rate of the first decoder layer.
        muon_rate: peak learning rate of Muon, which then trains the layers' matrices; 0 leaves them to AdamW as well.
            In Muon's own unit: the spectral norm of a step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    zero_stage: int
    bf16: bool
    chunk: int = 0
    first_layer_rate: float = 1.0
    muon_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.muon_rate and self.clip:
            # DeepSpeed clips by the norm of Muon's steps at some ZeRO stages and by that of the gradients at others.
            raise ValueError(f"clip is {self.clip:g}, and Muon gives its steps their length itself: set clip=0")


def start_engine(module: nn.Module, settings: Optimisation, world: int) -> "DeepSpeedEngine":
    """A DeepSpeed engine over the module's trainable parameters.

    Raises:
        ValueError: the batch does not divide among the ranks.
    """
    import deepspeed

    compat.skip_shared_memory_operator()
    if settings.batch_size % world:
        raise ValueError(f"a batch of {settings.batch_size} does not divide among {world} workers")
    optimizer = make_optimizer(module, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.steps, settings.warmup)
    )
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(settings, world)
    )
    return engine


def make_optimizer(module: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """AdamW, or DeepSpeed's Muon with AdamW for what Muon is not made for."""
    adam = {"betas": (0.9, 0.98), "eps": 1e-7}
    groups = parameter_groups(module, settings)
    if not settings.muon_rate:
        return torch.optim.AdamW(groups, lr=settings.learning_rate, **adam)
    for group in groups:
        group.update({"momentum": 0.95} if group["use_muon"] else adam)
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # ZeRO takes a parameter's steps from Muon by this
    return compat.muon_optimizer()(groups)


def parameter_groups(module: nn.Module, settings: Optimisation) -> list[dict[str, Any]]:
    """The trainable parameters by learning rate, weight decay and whether Muon trains them; no group is empty.

    Muon is for matrices that map states to states: not for embeddings, patches, biases, norms or a temperature.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            muon = bool(settings.muon_rate) and parameter.ndim == 2 and "embed" not in name
            rate = settings.first_layer_rate if ".language_model.layers.0." in name else 1.0
            rate *= settings.muon_rate if muon else settings.learning_rate
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay, muon), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "use_muon": muon}
        for (rate, decay, muon), params in groups.items()
    ]


def deepspeed_config(settings: Optimisation, world: int) -> dict[str, Any]:
    """The DeepSpeed configuration; everything that has a surprising default is written out."""
    return {
        "train_micro_batch_size_per_gpu": settings.batch_size // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
            # On ZeRO-3 Muon needs a matrix's whole gradient on the rank that makes the step.
            **({"reduce_scatter": False} if settings.muon_rate and settings.zero_stage == 3 else {}),
        },
        "bf16": {"enabled": settings.bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def full_weights(engine: "DeepSpeedEngine") -> Mapping[str, torch.Tensor]:
    """The module's whole state dict, on rank 0 under ZeRO-3; all ranks must call it."""
    if engine.zero_optimization_stage() == 3:
        return compat.whole_weights(engine)
    return engine.module.state_dict()
