"""One rank of a training with everything at once: `python -m tests.objective_world CASE_JSON`.

Learnable τ in both directions, LoRA, hard negatives in uneven numbers, leading dimensions, a feature loss over all
ranks. A case lists trainings, which share one start of the process; rank 0 writes for each its losses, its last τ and
its trained weights.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed

from tests.support import joined_ranks
from tests.training_world import PAIRS

DIM = 64


def write_negatives(directory: Path) -> Path:
    """Mined negatives: none for a third of the queries, one for a third, three for a third."""
    from stages.data.schemas import NEGATIVES

    rows = []
    for number in range(PAIRS):
        dids = [f"9:{(number + step) % PAIRS}" for step in (1, 2, 7)][: (0, 1, 3)[number % 3]]
        rows.append({"qid": f"9:{number}", "negatives": dids, "scores": [0.5] * len(dids)})
    pq.write_table(pa.Table.from_pylist(rows, NEGATIVES), directory / "negatives.parquet")
    return directory / "negatives.parquet"


def everything():
    """The objective of the first trainings."""
    from stages.learn.objective import Objective

    weighed = {"contrastive_weight": 0.9, "feature_loss": "relational", "feature_weight": 1.0}
    return Objective("learnable", 0.07, dims=(16, 32), symmetric=True, **weighed)


def alignment():
    """Learning from the teacher alone."""
    from stages.learn.objective import Objective

    return Objective("infonce", 0.07, contrastive_weight=0, feature_loss="kl", feature_weight=1)


def recipe(name: str, section: str):
    """(objective, settings, cluster, depth) of a recipe's stage; batch, chunk and precision shrunk."""
    from pipeline.config.load import load_config
    from stages import distill, train

    shrunk = ["data.kind=scenes", f"backbone.revision={'0' * 40}", "cluster.precision=fp32", "cluster.log_every=1"]
    config = load_config(name, [*shrunk, f"{section}.chunk=3", "distill.batch_size=8", "train.batch_size=8"])
    params, stage = getattr(config, section), {"distill": distill, "train": train}[section]
    return stage.objective(params), params, config.cluster, config.student.layers


def trained(case: dict, job: dict) -> dict:
    """Runs one training and tells what came of it."""
    from pyarrow.fs import LocalFileSystem

    from pipeline.artifacts.store import open_store
    from stages.contract.params import Cluster, Lora
    from stages.distributed.training import backbone_weights
    from stages.learn import loop
    from stages.learn.collectives import rank, world_size
    from stages.learn.engine import full_weights, save_state
    from stages.learn.sampling import PairSampler
    from stages.learn.settings import FineTuning
    from stages.mining.negatives import Mined
    from stages.model.encoder import Encoder
    from stages.model.lora import add_adapters, merged

    world = Path(case["world"])
    objective, model, layers = everything(), world / "model", None
    settings = FineTuning(
        steps=job.get("steps", 4),
        batch_size=8,
        learning_rate=3e-3,
        warmup=0.1,
        first_layer_rate=0.5,
        lora=Lora(rank=4, dropout=0.0),
        chunk=job.get("chunk", 0),
    )
    cluster = Cluster(zero_stage=job.get("zero_stage", 1), log_every=1, checkpoint_every=job.get("save_every", 10**9))
    if job.get("alone"):
        objective = alignment()
    if "loss" in job:
        objective = replace(objective, loss=job["loss"], hard_temperature=0.05)
    if "recipe" in job:
        objective, settings, cluster, layers = recipe(*job["recipe"])
        model = world / "deep"
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(job.get("unset_is_nan", False), warn_only=True)  # fills memory that nobody set
    encoder = Encoder.load(model, layers).train()
    encoder.freeze_vision()
    add_adapters(encoder, settings.lora)
    before = merged(backbone_weights(encoder, encoder.state_dict()), settings.lora)
    sampler = PairSampler(
        open_store(str(world / "store")).artifact("ingest", "0123456789ab"),
        settings,
        world=world_size(),
        rank=rank(),
        seed=5,
        vary_instructions=True,
        mined=Mined("train", "k", (case["negatives"],), LocalFileSystem()),
        hard_negatives=2 if "recipe" not in job else 0,
    )
    states = torch.randn(PAIRS, DIM, generator=torch.manual_seed(1))
    table = {f"9:{index}": state for index, state in enumerate(states)}
    log = SimpleNamespace(losses=[], last={})

    class Stop(Exception):
        """Ends a training before its last step."""

    def on_log(step: int, measures: dict) -> None:
        loss = torch.tensor(measures["loss"])
        distributed.all_reduce(loss)
        log.losses.append(loss.item() / world_size())
        log.last = measures
        if step == job.get("stop_at"):
            raise Stop

    def on_checkpoint(step: int, engine) -> None:
        if "save" in job:
            save_state(engine, Path(job["save"]), step, tag=f"step{step}")

    try:
        engine = loop.fit(
            encoder,
            sampler,
            objective,
            settings,
            cluster,
            teacher=loop.cached_teacher(table, table) if objective.feature_weight else None,
            resume=Path(job["resume"]) if "resume" in job else None,
            on_log=on_log,
            on_checkpoint=on_checkpoint,
        )
    except Stop:
        return {"losses": log.losses, "last": log.last, "layers": encoder.layers}
    stock = merged(backbone_weights(encoder, full_weights(engine)), settings.lora)
    changed = {name: (tensor - before[name]).abs().max().item() for name, tensor in stock.items()}
    return {
        "losses": log.losses,
        "last": log.last,
        "changed": sorted(name for name, change in changed.items() if change),
        "weights": torch.cat([stock[name].flatten()[:200] for name in sorted(stock)]).tolist(),
    }


def main(case: dict) -> None:
    """All trainings of a case, one after the other."""
    with joined_ranks():
        results = {name: trained(case, job) for name, job in case["jobs"].items()}
        if distributed.get_rank() == 0:
            Path(case["result"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
