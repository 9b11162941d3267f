"""Private interfaces of DeepSpeed and torch that stages use, all of them: where a new version breaks Puma, it is here.

Libraries are imported by the functions, so that this module drags nothing in. `tests/unit/test_compat.py` asks every
interface of the installed version for what is needed of it, and one that is gone says so in words.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn, optim
    from torch.profiler import profile


def private(library: ModuleType, owner: object, name: str, purpose: str) -> Any:
    """The attribute `name` of `owner`. Raises ImportError, in one line, where this version of the library has none."""
    if not hasattr(owner, name):
        raise ImportError(
            f"{library.__name__} {library.__version__} has no {name} any more, which Puma needs {purpose}: "
            "install the version that pyproject.toml names, or correct stages/model/compat.py"
        )
    return getattr(owner, name)


def skip_shared_memory_operator() -> None:
    """Keeps DeepSpeed from compiling an operator at every first start on a CPU; gloo does without.

    It takes 20 to 40 seconds and needs a compiler. `build_shm_op` asks a table of operators, which DeepSpeed would
    fill by trying compilers; an empty one is asked for nothing else.
    """
    import deepspeed

    asking = import_module("deepspeed.comm.torch")  # as an attribute its name is taken by torch itself
    private(deepspeed, asking, "build_shm_op", "to start on a CPU without a compiler")
    deepspeed.ops.__compatible_ops__ = {}


def muon_optimizer() -> "Callable[[list[dict[str, Any]]], optim.Optimizer]":
    """DeepSpeed's Muon with AdamW beside it: `torch.optim.Muon` needs whole matrices, and ZeRO shares them out."""
    import deepspeed

    try:
        from deepspeed.runtime.zero.muon import muon_optimizer as module
    except ImportError:
        module = None
    return private(deepspeed, module, "MuonWithAuxAdam", "for muon_rate")


def whole_weights(engine: "DeepSpeedEngine") -> "Mapping[str, Tensor]":
    """The state dict that ZeRO-3 has shared out, gathered layer by layer; on rank 0, empty elsewhere. All ranks call.

    The public `save_16bit_model` writes the same to a file of one name, which would be read again to be renamed.
    """
    import deepspeed

    gather = private(deepspeed, engine, "_zero3_consolidated_16bit_state_dict", "to export what ZeRO-3 trained")
    return gather() or {}


def peak_memory(profiler: "profile") -> int:
    """The most bytes that tensors held at one time under a profiler with `profile_memory=True`.

    Torch publishes sums for each operator and a deprecated timeline by category, but not the allocations themselves.
    """
    import numpy as np
    import torch

    results = private(torch, profiler.profiler, "kineto_results", "to measure the memory of a forward pass")
    events = [event for event in results.events() if event.name() == "[memory]"]
    bytes_N = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(bytes_N.max(initial=0))


def hide_module(parent: "nn.Module", name: str) -> "nn.Module":
    """Takes a submodule out of its parent's modules, while the parent's own code still finds it by its name.

    The instance's dictionary takes it, for assigning a module registers it. Torch looks there before it asks the
    registry, and so leaves it out of `parameters()`, `state_dict()` and `to()`.
    """
    module = getattr(parent, name)
    delattr(parent, name)
    parent.__dict__[name] = module
    return module


def is_hidden(parent: "nn.Module", name: str) -> bool:
    """Whether `hide_module` took it out."""
    return name in parent.__dict__
