"""A small ingest artifact, and one rank of trainings over it: `python -m tests.training_world CASE_JSON`.

A case lists trainings, which share one start of the process: the start costs more than they do. Rank 0 writes for each
its losses and weights to the case's result file.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.schemas import CANDIDATES, IMAGES, INSTRUCTIONS, QUERIES
from tests.support import begin, commit, joined_ranks
from tests.tiny_models import picture

PAIRS = 24
COLOURS = ("red", "blue", "green", "orange")


def write_ingest(store: Path, validation: int = 0):
    """An ingest artifact of pairs: text → image, image → text, and text → text, with shared positives.

    The last `validation` of them are no train queries.
    """
    context = begin(store, "ingest")
    images = [picture(56, 56, colour) for colour in COLOURS]
    tables = {
        "images": (IMAGES, [_image(index, data) for index, data in enumerate(images)]),
        "candidates": (CANDIDATES, [_candidate(index) for index in range(PAIRS)]),
        "queries": (QUERIES, [_query(index, PAIRS - validation) for index in range(PAIRS)]),
        "instructions": (INSTRUCTIONS, _instructions()),
    }
    for prefix, (schema, rows) in tables.items():
        directory = Path(context.output.base, prefix)
        directory.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), directory / "part.parquet")
    return commit(store, context)


def _image(index: int, data: bytes) -> dict:
    return {"image_id": f"i{index}", "bytes": data, "width": 56, "height": 56, "format": "png"}


def _modality(index: int) -> str:
    return "image" if index % 3 == 0 else "text"


def _candidate(index: int) -> dict:
    image = _modality(index) == "image"
    colour = index // 3 % len(COLOURS)
    return {
        "did": f"9:{index}",
        "dataset_id": 9,
        "modality": _modality(index),
        "text": None if image else f"Thing number {index}.",
        "image_id": f"i{colour}" if image else None,
        "content_id": f"picture {colour}" if image else f"text {index}",
        "pools": ["union_train"],
    }


def _query(index: int, trained: int) -> dict:
    image = index % 3 == 1
    return {
        "qid": f"9:{index}",
        "split": "train" if index < trained else "val",
        "dataset": "made",
        "dataset_id": 9,
        "task_id": (0, 3, 1)[index % 3],
        "modality": "image" if image else "text",
        "target_modality": _modality(index),
        "text": None if image else f"Find number {index}.",
        "image_id": f"i{index % len(COLOURS)}" if image else None,
        "positives": [f"9:{index}", f"9:{(index + 3) % PAIRS}"],
        "negatives": [],
        "pool": None,
    }


def _instructions() -> list[dict]:
    prompts = {("text", "image"): "Find it.", ("image", "text"): "Describe it.", ("text", "text"): "Answer."}
    return [
        {"dataset_id": 9, "dataset": "made", "query_modality": query, "target_modality": target, "prompts": [prompt]}
        for (query, target), prompt in prompts.items()
    ]


def trained(world: Path, job: dict) -> dict:
    """Runs one training and tells what came of it."""
    import torch

    from pipeline.artifacts.store import open_store
    from stages.contract.params import Cluster
    from stages.distill import Params
    from stages.distributed.training import turn
    from stages.learn import loop
    from stages.learn.collectives import rank, world_size
    from stages.learn.engine import full_weights, save_state
    from stages.learn.sampling import PairSampler
    from stages.model.encoder import Encoder

    torch.manual_seed(0)
    ingest = open_store(str(world / "store")).artifact("ingest", "0123456789ab")
    encoder = Encoder.load(world / "model").train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for layer in encoder.backbone.language_model.layers:
        layer.self_attn.attention_dropout = job.get("dropout", 0.0)
    encoder.freeze_vision()
    muon = job.get("muon_rate", 0.0)
    settings = Params(
        turn=job.get("turn", False),
        steps=job.get("steps", 6),
        batch_size=8,
        learning_rate=job.get("learning_rate", 3e-3),
        warmup=0.1,
        clip=0.0 if muon else 1.0,
        muon_rate=muon,
        chunk=job.get("chunk", 0),
    )
    cluster = Cluster(zero_stage=job.get("zero_stage", 1), log_every=1, checkpoint_every=job.get("save_at", 10**9))
    sampler = PairSampler(ingest, settings, world=world_size(), rank=rank(), seed=5, vary_instructions=True)
    log = SimpleNamespace(losses=[], features=[])

    def on_log(step: int, measures: dict) -> None:
        loss = torch.tensor(measures["loss"])
        torch.distributed.all_reduce(loss)
        log.losses.append(loss.item() / world_size())
        log.features.append(measures.get("feature cosine"))
        if (step, rank()) == tuple(job.get("spoil", ())):
            weight = next(one for one in encoder.parameters() if one.requires_grad)
            getattr(weight, "ds_tensor", weight).data.fill_(torch.inf)

    class Stop(Exception):
        """Ends a training after a checkpoint, as a kill would."""

    def on_checkpoint(step: int, engine) -> None:
        if step == job.get("save_at"):
            save_state(engine, Path(job["save"]), step)
            if job.get("stop"):
                raise Stop

    weight = job.get("feature_weight", 0.0)
    width = job.get("teacher_width", encoder.dim)
    states = torch.nn.functional.normalize(torch.randn(PAIRS, width, generator=torch.manual_seed(1)), dim=1)
    table = {f"9:{index}": state for index, state in enumerate(states)}
    teacher = loop.cached_teacher(table, table) if weight else None
    asked = SimpleNamespace(settings=settings, rotation=None, label="made")
    teacher, rotation = turn(asked, encoder, sampler, teacher, None)
    try:
        engine = loop.fit(
            encoder,
            sampler,
            loop.Objective(
                "mac",
                0.05,
                feature_weight=weight,
                contrastive_weight=0.0 if weight else 1.0,
            ),
            settings,
            cluster,
            teacher=teacher,
            resume=Path(job["resume"]) if "resume" in job else None,
            on_log=on_log,
            on_checkpoint=on_checkpoint,
        )
    except Stop:
        return {"losses": log.losses}
    except loop.Diverged as error:
        return {"losses": log.losses, "stopped": str(error)}
    weights = {**full_weights(engine), **encoder.vision_weights()}
    change = {name: (tensor - before[name]).abs().max().item() for name, tensor in weights.items()}
    return {
        "losses": log.losses,
        "features": log.features,
        "rotation": None if rotation is None else rotation.tolist(),
        "weights": torch.cat([tensor.flatten()[:200] for tensor in weights.values()]).tolist(),
        "vision_change": max((value for name, value in change.items() if ".visual." in name), default=0.0),
        "decoder_change": max((value for name, value in change.items() if ".layers." in name), default=0.0),
    }


def main(case: dict) -> None:
    """All trainings of a case, one after the other."""
    from torch import distributed

    with joined_ranks():
        results = {name: trained(Path(case["world"]), job) for name, job in case["jobs"].items()}
        if distributed.get_rank() == 0:
            Path(case["result"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
