"""One rank of the comparisons of GradCache with the whole batch: `python -m tests.gradcache_world CASE_JSON`.

All comparisons share one start of the processes. Rank 0 writes, for each case, its update beside that of the whole
batch: the largest difference over the largest change of any weight, of the temperature's too. The optimizer is SGD,
whose update is the gradient; Adam's would hide a factor, and blow up the rounding of gradients near zero.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from stages.contract.params import Cluster
from stages.learn import gradcache
from stages.learn.collectives import gather, rank, world_size
from stages.learn.engine import full_weights, start_engine
from stages.learn.losses import softmax_loss
from stages.learn.settings import Training
from stages.model.encoder import Encoder
from stages.model.rows import Row
from tests.support import joined_ranks
from tests.tiny_models import picture

LIMIT = 2
"""Rows of a chunk."""


class Trained(nn.Module):
    """An encoder beside a parameter of the loss."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.temperature = Temperature()

    def forward(self, *arguments):
        return self.encoder(*arguments)


class Temperature(nn.Module):
    """Divides by a learnable τ; a module call, because ZeRO-3 gathers parameters for those only."""

    def __init__(self):
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor([-3.0]))  # at -2 its gradient is nothing but rounding

    def forward(self, similarity_QC: torch.Tensor) -> torch.Tensor:
        return similarity_QC / self.log_tau.exp()


def rows_of(rank: int) -> list[Row]:
    """Six queries and six candidates. Rank 0 has texts of many lengths, which make many chunks, and no image; rank 1
    has images, which make few."""
    if rank == 0:
        return [Row(f"{index} " + "a green star " * (index * index // 4)) for index in range(12)]
    return [Row(None if index < 6 else f"is it {index}?", picture(60 + index, 60, "blue")) for index in range(12)]


def update(directory: Path, *, stage: int, cached: bool, limit: int = LIMIT, train_vision: bool = False,
           dropout: float = 0.0, naive: bool = False, bf16: bool = False,
           device: str = "cpu") -> dict[str, torch.Tensor]:  # fmt: skip
    """What one step adds to the weights, by name, on rank 0."""
    encoder = Encoder.load(directory, precision="bf16" if bf16 else "fp32", device=device).train()
    for layer in encoder.backbone.language_model.layers if dropout else ():
        layer.self_attn.attention_dropout = dropout
    if not train_vision:
        encoder.freeze_vision()
    module = Trained(encoder).to(device, torch.bfloat16 if bf16 else torch.float32)
    before = {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}
    settings = Training(steps=1, batch_size=12, learning_rate=1.0, warmup=0, weight_decay=0, clip=0)
    cluster = Cluster(zero_stage=stage, precision="bf16" if bf16 else "fp32")
    with patch("torch.optim.AdamW", lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr)):
        engine = start_engine(module, settings, cluster, world_size())

    def loss_of(states_RD: torch.Tensor) -> tuple[torch.Tensor, dict]:
        query_BD, candidate_BD = nn.functional.normalize(states_RD.float(), dim=-1).chunk(2)
        logits_QC = module.temperature(query_BD @ gather(candidate_BD).T)
        positive_Q = torch.arange(6, device=device) + 6 * rank()
        tau = torch.tensor(1.0, device=device)
        return softmax_loss(logits_QC, tau, positive_Q, torch.zeros_like(logits_QC, dtype=bool)), {}

    # A single rank has rows of both kinds.
    rows = rows_of(rank()) if world_size() > 1 else rows_of(0)[:6] + rows_of(1)[6:]
    batch = encoder.collator(rows, limit, needs_images=gradcache.needs_images(encoder))
    torch.manual_seed(rank())
    with patch.object(gradcache, "one_reduction", lambda _: nullcontext()) if naive else nullcontext():
        gradcache.backward(engine, encoder, batch, loss_of, cached=cached)
    engine.step()
    after = full_weights(engine)
    return {name: tensor.cpu() - before[name] for name, tensor in after.items()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far two updates differ, relative to the largest change."""
    if not one:
        return {}
    assert one.keys() == other.keys()
    size = max(change.abs().max() for change in other.values())
    vision = [change.abs().max() / size for name, change in one.items() if ".visual." in name]
    moved, expected = (torch.cat([one[name].flatten() for name in other]).float() for one in (one, other))
    return {
        "mean": float((moved - expected).norm() / expected.norm()),
        "all": float(max((one[name] - other[name]).abs().max() for name in one) / size),
        "temperature": float((one[TAU] - other[TAU]).abs() / other[TAU].abs()),
        "vision": float(max(vision, default=0)),
    }


TAU = "temperature.log_tau"


def main(case: dict) -> None:
    """Every comparison; the reference is the whole batch in unlimited chunks on ZeRO-1."""
    with joined_ranks():
        directory = Path(case["model"])
        results = {}
        whole = update(directory, stage=1, cached=False, limit=0)
        for stage in (0, 1, 2, 3):
            results[f"zero {stage}"] = apart(update(directory, stage=stage, cached=True), whole)
        results["naive"] = apart(update(directory, stage=1, cached=True, naive=True), whole)
        results["whole, zero 3"] = apart(update(directory, stage=3, cached=False), whole)
        noisy = update(directory, stage=1, cached=False, dropout=0.3)
        results["dropout matters"] = apart(noisy, whole)
        results["dropout"] = apart(update(directory, stage=1, cached=True, dropout=0.3), noisy)
        seeing = update(directory, stage=1, cached=False, limit=0, train_vision=True)
        for stage in (2, 3):
            trained = update(directory, stage=stage, cached=True, train_vision=True)
            results[f"trained vision, zero {stage}"] = apart(trained, seeing)
        coarse = update(directory, stage=1, cached=False, bf16=True)
        for stage in (1, 3):
            results[f"bf16, zero {stage}"] = apart(
                update(directory, stage=stage, cached=True, limit=1, bf16=True), coarse
            )
        linear = Path(case["linear"])
        expected = update(linear, stage=1, cached=False, limit=0)
        results["linear attention, zero 3"] = apart(update(linear, stage=3, cached=True), expected)
        if rank() == 0:
            Path(case["result"]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
