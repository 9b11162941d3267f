"""Private interfaces of libraries: the installed versions have them; what is gone is named with its version."""

from importlib import import_module
from types import SimpleNamespace

import deepspeed
import pytest
import torch

from stages.model import compat


def gone(library, name: str) -> str:
    """What the error says that names the library's version and what it lost."""
    return rf"^{library.__name__} {library.__version__.replace('+', '.')} has no {name} any more, which Puma needs "


def test_deepspeed_compiles_no_operator_on_a_cpu(monkeypatch):
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    communication = import_module("deepspeed.comm.torch")
    monkeypatch.setattr(ShareMemCommBuilder, "load", lambda builder: pytest.fail(f"DeepSpeed compiles {builder.NAME}"))
    monkeypatch.setitem(vars(deepspeed.ops), "__compatible_ops__", {ShareMemCommBuilder.NAME: True})
    compat.skip_shared_memory_operator()
    assert communication.build_shm_op() is None
    monkeypatch.delattr(communication, "build_shm_op")
    with pytest.raises(ImportError, match=gone(deepspeed, "build_shm_op")):
        compat.skip_shared_memory_operator()


def test_deepspeed_has_a_muon(monkeypatch):
    from deepspeed.runtime.zero.muon import muon_optimizer

    assert issubclass(compat.muon_optimizer(), torch.optim.Optimizer)
    monkeypatch.delattr(muon_optimizer, "MuonWithAuxAdam")
    with pytest.raises(ImportError, match=gone(deepspeed, "MuonWithAuxAdam")):
        compat.muon_optimizer()


def test_deepspeed_gathers_what_zero_3_shares_out():
    # That it gathers the right weights is shown by two ranks, in test_learn_gradcache.
    assert hasattr(deepspeed.DeepSpeedEngine, "_zero3_consolidated_16bit_state_dict"), deepspeed.__version__
    assert compat.whole_weights(SimpleNamespace(_zero3_consolidated_16bit_state_dict=lambda: None)) == {}
    with pytest.raises(ImportError, match=gone(deepspeed, "_zero3_consolidated_16bit_state_dict")):
        compat.whole_weights(SimpleNamespace())


def test_torch_tells_of_every_allocation():
    with torch.profiler.profile(profile_memory=True) as profiler:
        first = torch.ones(1000, 1000)
        del first
        torch.ones(1000, 500)
    assert compat.peak_memory(profiler) == pytest.approx(4 * 1000 * 1000, rel=0.01)
    with pytest.raises(ImportError, match=gone(torch, "kineto_results")):
        compat.peak_memory(SimpleNamespace(profiler=SimpleNamespace()))


def test_a_hidden_module_is_found_by_its_name_and_by_nothing_else():
    parent = torch.nn.ModuleDict({"kept": torch.nn.Linear(2, 2), "hidden": torch.nn.Linear(2, 2)})
    module = compat.hide_module(parent, "hidden")
    assert parent.hidden is module, f"torch {torch.__version__} does not look into an instance's dictionary first"
    assert compat.is_hidden(parent, "hidden") and not compat.is_hidden(parent, "kept")
    assert {name.partition(".")[0] for name in (*parent.state_dict(), *dict(parent.named_parameters()))} == {"kept"}
