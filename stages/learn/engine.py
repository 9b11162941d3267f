"""DeepSpeed around a module: optimizer, schedule, ZeRO, and full weights back out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stages.learn.schedules import learning_rate_factor


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        steps: optimizer steps of the whole training.
        batch_size: queries of a step over all ranks.
        learning_rate: peak.
        warmup: share of the steps that the warm-up takes.
        weight_decay: on matrices only.
        clip: gradient norm at which to clip; 0 is off. Always passed on, DeepSpeed 0.19.8 clips at 1.0 by default.
        zero_stage: DeepSpeed ZeRO stage.
        bf16: compute in bfloat16.
        chunk: rows that are embedded at a time, by GradCache; 0 embeds the whole batch in one pass. It decides the
            memory of a step and no result.
        first_layer_rate: factor on the learning rate of the first decoder layer.
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


def start_engine(module: nn.Module, settings: Optimisation, world: int) -> Any:
    """A DeepSpeed engine over the module's trainable parameters.

    Raises:
        ValueError: the batch does not divide among the ranks.
    """
    import deepspeed

    # On CPU DeepSpeed compiles a shared-memory operator at every first start (20 to 40 s, and it needs a compiler);
    # gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if settings.batch_size % world:
        raise ValueError(f"a batch of {settings.batch_size} does not divide among {world} workers")
    groups = parameter_groups(module, settings)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-7)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.steps, settings.warmup)
    )
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(settings, world)
    )
    return engine


def parameter_groups(module: nn.Module, settings: Optimisation) -> list[dict[str, Any]]:
    """The trainable parameters by weight decay and learning rate, as `torch.optim` takes them; no group is empty."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = settings.first_layer_rate if ".language_model.layers.0." in name else 1.0
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate * settings.learning_rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


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
        },
        "bf16": {"enabled": settings.bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def full_weights(engine: Any) -> Mapping[str, torch.Tensor]:
    """The module's whole state dict, on rank 0 under ZeRO-3; all ranks must call it."""
    if engine.zero_optimization_stage() == 3:
        return engine._zero3_consolidated_16bit_state_dict() or {}
    return engine.module.state_dict()
