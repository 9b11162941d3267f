"""features: what the deep layers know, once, and how good and how dear every depth is.

Inputs: ingested pairs, the backbone. Steps: a pool of actors runs the full backbone over the distillation set (train
queries and their positives) and keeps the chosen layer's state at the read-out token; then over a validation sample,
keeping the state after every layer from the same forward pass, from which the depth curve is computed; then one
process times the backbone with its first k layers for every k. Outputs: `features/` Parquet in fp16, `features.json`,
`depth_curve.json`, `.md` and `.png`.

The teacher is read once and not in every training step, which is exact as long as a query keeps its instruction:
distillation therefore uses the first wording, as this stage does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.contract.context import Context, StageError
from stages.contract.params import Section, knob
from stages.distributed.shards import ROWS, ROWS_TOLD

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import ray.data

    from stages.model.inputs import Batch

VERSION = 1
FP16_LARGEST = 65504.0


class Params(Section):
    """The section `features`."""

    layer: int = Field(
        -1,
        description="teacher layer that is read: k > 0 is the state after k layers, -1 the last, -2 the one before",
    )
    before_mlp: bool = Field(
        False,
        description="read that layer before its MLP; the last MLP turns states toward the vocabulary (FreeRet)",
    )
    normed: bool = Field(True, description="apply the final norm to the state, as the student's own output has it")
    curve_queries: int = Field(40, ge=1, description="validation queries of each task for the depth curve")
    curve_candidates: int = Field(1000, ge=10, description="candidates for the depth curve; positives always belong")
    cost_queries: int = Field(16, ge=1, description="of these validation queries, those that every depth is timed on")
    rows_per_shard: int = Field(ROWS, ge=1, description=ROWS_TOLD)
    batch_size: int = knob(64, ge=1)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    from stages.evaluation.depth_view import curve_table, plot_curve, png
    from stages.model import checkpoint
    from stages.model.prune import pruned_config

    params = context.params.features
    model = checkpoint.directory(context.inputs["backbone"])
    config = pruned_config(model, None).text_config
    depth = config.num_hidden_layers
    layer = params.layer if params.layer > 0 else depth + 1 + params.layer
    if not params.layer or not 1 <= layer <= depth:
        raise StageError(f"features.layer is {params.layer}, but the backbone has layers 1..{depth} (-1 is the last)")
    dim = config.hidden_size
    rows = _write_features(context, model, layer)
    read = {"layer": layer, "before_mlp": params.before_mlp, "normed": params.normed}
    context.output.write_json("features.json", {**read, "dim": dim, "rows": rows})
    curve = _depth_curve(context, model, dim)
    context.output.write_json("depth_curve.json", curve)
    context.output.write_bytes("depth_curve.md", f"{curve_table(curve)}\n".encode())
    figure = plot_curve(curve)
    context.output.write_bytes("depth_curve.png", png(figure))
    context.tracker.figure("depth_curve.png", figure)
    for entry in curve["layers"]:
        measured = {"hit@5": entry["hit@5"], "ms": entry["latency_ms"]["median"], "MiB": entry["memory_mib"]}
        context.tracker.metrics({f"depth {name}": value for name, value in measured.items()}, step=entry["layers"])
    return {"rows": rows, "layer": layer, "hit@5 at full depth": curve["layers"][-1]["hit@5"]}


# ---------------------------------------------------------------------------------------------- distillation set


def _write_features(context: Context, model: Path, layer: int) -> int:
    """Reads the teacher over train queries and their positives, shard by shard; returns the number of rows written."""
    from functools import partial

    import ray

    from stages.distributed.shards import cut, map_shards

    params, ingest = context.params.features, context.inputs["ingest"]
    positives = ray.put(_positive_hashes(ingest, "train"))
    keep = {"query": partial(_of_split, split="train"), "candidate": partial(_among, hashes=positives)}
    reading = {"model": model, "layers": (layer,), "normed": params.normed, "before_mlp": params.before_mlp}
    rows = 0
    for side, prefix in (("query", "queries"), ("candidate", "candidates")):
        finish = partial(_as_features, side=side)
        shards = cut(ingest, prefix, params.rows_per_shard)
        rows += map_shards(
            context,
            f"features/{prefix}",
            shards,
            ingest,
            Teacher,
            keep=keep[side],
            finish=finish,
            side=side,
            batch_size=params.batch_size,
            **reading,
        )
    return rows


def _of_split(table: "pa.Table", split: str) -> "pa.Table":
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["split"], split))


def _among(table: "pa.Table", hashes: Any) -> "pa.Table":
    import pyarrow as pa
    import ray

    from stages.data.keys import hash_ids, locate

    return table.filter(pa.array(locate(hash_ids(table["did"].to_pylist()), ray.get(hashes)) >= 0))


def _positive_hashes(ingest: Any, split: str) -> "np.ndarray":
    """Sorted hashes of the positives of a split's queries, 8 bytes each: the only part of them held at once."""
    import numpy as np
    import pyarrow.parquet as pq

    from stages.data.keys import hash_ids

    hashes = [np.empty(0, np.uint64)]
    for path in ingest.files("queries"):
        for batch in pq.ParquetFile(path, filesystem=ingest.filesystem).iter_batches(columns=["split", "positives"]):
            rows = zip(batch["split"].to_pylist(), batch["positives"].to_pylist(), strict=True)
            hashes.append(np.unique(hash_ids(did for of, dids in rows if of == split for did in dids)))
    return np.unique(np.concatenate(hashes))


def _as_features(table: "pa.Table", side: str) -> "pa.Table":
    import pyarrow as pa

    from stages.data.schemas import FEATURES

    columns = [pa.array([side] * len(table), pa.string()), table["qid" if side == "query" else "did"], table["vector"]]
    return pa.table(columns, schema=FEATURES(table["vector"].type.list_size))


# ---------------------------------------------------------------------------------------------------- the teacher


class Teacher:
    """The actor: one model load, then a table in and the same table with the states of some layers out."""

    def __init__(self, ingest: Any, model: Path, side: str, layers: tuple[int, ...] | None, normed: bool,
                 before_mlp: bool, batch_size: int, cluster: Any):  # fmt: skip
        from stages.distributed.embedding import RowReader, load_encoder

        self.reader = RowReader(ingest, side)
        self.encoder = load_encoder(model, cluster)
        self.layers, self.batch_size = layers, batch_size
        self.normed, self.before_mlp = normed, before_mlp

    def __call__(self, table: "pa.Table") -> "pa.Table":
        import numpy as np
        import pyarrow as pa

        rows = [self.reader.read(row) for row in table.to_pylist()]
        depth = self.encoder.layers if self.layers is None else len(self.layers)
        states_NKD = np.zeros((len(rows), depth, self.encoder.dim), np.float32)
        for start, batch in self.encoder.batches(rows, self.batch_size):
            states_NKD[start : start + self.batch_size] = self._states(batch)
        if not np.isfinite(states_NKD).all() or np.abs(states_NKD).max(initial=0) > FP16_LARGEST:
            raise StageError("the teacher's states do not fit fp16; set features.normed=true")
        values = pa.array(states_NKD.astype(np.float16).reshape(-1))
        return table.append_column("vector", pa.FixedSizeListArray.from_arrays(values, depth * self.encoder.dim))

    def _states(self, batch: "Batch") -> "np.ndarray":
        """States [B, K, D] of the wanted layers."""
        import torch

        with torch.inference_mode():
            states_KBD = self.encoder.states_by_layer(batch, self.normed, self.before_mlp)
        if self.layers is not None:
            states_KBD = states_KBD[[layer - 1 for layer in self.layers]]
        return states_KBD.transpose(0, 1).float().cpu().numpy()


def _teacher(context: Context, dataset: "ray.data.Dataset", model: Path, side: str,
             layers: tuple[int, ...] | None) -> "ray.data.Dataset":  # fmt: skip
    """Adds `vector`, the states of `layers` one after the other (None: of every layer), fp16."""
    from stages.distributed.embedding import map_with_models

    params = context.params.features
    # A student of any depth reads its last layer through the final norm, whatever distillation compares.
    curve = layers is None
    reading = {"normed": params.normed or curve, "before_mlp": params.before_mlp and not curve}
    reading |= {"model": model, "side": side, "layers": layers}
    return map_with_models(context, dataset, Teacher, batch_size=params.batch_size, **reading)


# ------------------------------------------------------------------------------------------------ the depth curve


def _depth_curve(context: Context, model: Path, dim: int) -> dict[str, Any]:
    """hit@5 of every depth on the validation sample, and what each costs; see `stages.evaluation.depth` and `cost`."""
    import pyarrow as pa
    import ray
    import ray.data

    from stages.distributed.embedding import pool_size
    from stages.evaluation.depth import curve_of, evenly, validation_sample

    params, ingest = context.params.features, context.inputs["ingest"]
    sample = validation_sample(ingest, params.curve_queries, params.curve_candidates)
    states = []
    for side, table in zip(("query", "candidate"), sample, strict=True):
        dataset = _teacher(context, ray.data.from_arrow(table), model, side, layers=None)
        # The two sample sizes bound what comes to the driver here.
        states.append(pa.concat_tables(part for part in ray.get(dataset.to_arrow_refs()) if len(part)))
    curve = curve_of(*states, dim)
    timed = sample[0].take(evenly(len(sample[0]), params.cost_queries)).to_pylist()
    _, resources = pool_size(context.cluster)
    measure = ray.remote(**resources)(_time_depths)
    costs = ray.get(measure.remote(timed, ingest, context.cluster, model, params.batch_size))
    return {**curve, "layers": [one | cost for one, cost in zip(curve["layers"], costs, strict=True)]}


def _time_depths(rows: list[dict], ingest: Any, cluster: Any, model: Path, batch_size: int) -> list[dict[str, Any]]:
    """The cost of every depth, in a process of its own while nothing else of this run works."""
    from stages.distributed.embedding import RowReader, load_encoder
    from stages.evaluation.cost import measure_depths

    reader = RowReader(ingest, "query")
    return measure_depths(load_encoder(model, cluster), [reader.read(row) for row in rows], batch_size)
