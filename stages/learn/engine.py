"""DeepSpeed around a module: optimizer, schedule, ZeRO, checkpoints, and full weights back out of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stages.contract.params import Cluster
from stages.learn.collectives import rank, total
from stages.learn.schedules import learning_rate_factor
from stages.learn.settings import Optimisation, Training
from stages.model import compat

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FIRST_LAYER = ".language_model.layers.0."


def start_engine(module: nn.Module, settings: Training, cluster: Cluster, world: int) -> "DeepSpeedEngine":
    """A DeepSpeed engine over the module's trainable parameters.

    Args:
        settings: batch, optimizer and schedule.
        cluster: precision and ZeRO stage.
        world: number of ranks.

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
        model=module, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(settings, cluster, world)
    )
    return engine


def make_optimizer(module: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """AdamW, or DeepSpeed's Muon with AdamW for what Muon is not made for."""
    adam: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-7}
    groups = parameter_groups(module, settings)
    if not settings.muon_rate:
        # Fused: a pass over the weights instead of eight. On CPUs, where weights outweigh small batches, it counts.
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True, **adam)
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
            rate = settings.rate(muon=muon, first_layer=FIRST_LAYER in name)
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay, muon), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "use_muon": muon}
        for (rate, decay, muon), params in groups.items()
    ]


def deepspeed_config(settings: Training, cluster: Cluster, world: int) -> dict[str, Any]:
    """The DeepSpeed configuration; everything that has a surprising default is written out."""
    return {
        "train_micro_batch_size_per_gpu": settings.batch_size // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip,  # DeepSpeed 0.19.8 clips at 1.0 where nothing is said
        "zero_optimization": {
            "stage": cluster.zero_stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
            # On ZeRO-3 Muon needs a matrix's whole gradient on the rank that makes the step.
            **({"reduce_scatter": False} if settings.muon_rate and cluster.zero_stage == 3 else {}),
        },
        "bf16": {"enabled": cluster.chosen_precision() == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def full_weights(engine: "DeepSpeedEngine") -> Mapping[str, torch.Tensor]:
    """The module's whole state dict, on rank 0 under ZeRO-3; all ranks must call it."""
    if engine.zero_optimization_stage() == 3:
        return compat.whole_weights(engine)
    return engine.module.state_dict()


def weights_are_finite(engine: "DeepSpeedEngine") -> bool:
    """Whether each trained weight of each rank is a finite number; all ranks must call it."""
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    wrong = torch.stack([~held(parameter).isfinite().all() for parameter in trained]).sum()
    return not total(wrong).item()


def held(parameter: Any) -> torch.Tensor:
    """What this rank has of a weight: under ZeRO-3 its share, without the memory beyond the weight's end.

    Shares are of one size, so the last ones may reach beyond the end, and DeepSpeed leaves unset what is there.
    """
    share = getattr(parameter, "ds_tensor", None)
    if share is None:
        return parameter.detach()
    own = min(max(parameter.ds_numel - rank() * share.numel(), 0), share.numel())
    return share.detach().flatten()[:own]


def save_state(engine: "DeepSpeedEngine", directory: Path, step: int, tag: str | None = None) -> None:
    """Writes what training has changed: trained weights, optimizer, schedule. All ranks call it.

    Frozen weights stay out. Whoever goes on loads the model that the training began with, as it did; with LoRA on a
    backbone of 7B they would be 15 GB in every checkpoint, and on a GPU DeepSpeed would write them twice.
    """
    engine.save_checkpoint(str(directory), tag=tag, client_state={"step": step}, exclude_frozen_parameters=True)


def load_state(engine: "DeepSpeedEngine", directory: Path) -> int:
    """Takes a training up where `save_state` left it; the step that was done last.

    Raises:
        ValueError: a trained weight is missing.
    """
    _, client_state = engine.load_checkpoint(str(directory), custom_load_fn=load_trained)
    return client_state["step"]


def load_trained(src: Mapping[str, torch.Tensor], dst: nn.Module) -> None:
    """Loads the weights `src` into the module `dst`, whose frozen parameters may be missing there."""
    frozen = {name for name, parameter in dst.named_parameters() if not parameter.requires_grad}
    missing, unknown = dst.load_state_dict(src, strict=False)
    if others := [*sorted(set(missing) - frozen), *unknown]:
        raise ValueError(f"the checkpoint is of another model: {others[0]} is in one of them alone; remove it")
