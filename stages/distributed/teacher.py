"""The teacher read by layers: its states for distillation, and its vectors of the evaluation pools.

One forward pass gives the state after every layer, and `norm(state after layer k)` is exactly what a student of k
layers would give before any training. So the rows of the evaluation that stand for the teacher and for "the same
layers, cut and not trained" cost one pass together.

The vectors of the pools are artifacts of their own in the store, `teacher/{key}`, one for each layer. They are the
most expensive part of an evaluation and depend on neither the student nor a report: all students of one backbone share
them.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.contract.context import Artifact, Context, Shared, StageError
from stages.distributed.embedding import vector_column
from stages.distributed.pool import TEACHER, Models, Work
from stages.distributed.pools import CANDIDATE_COLUMNS, EMBEDDINGS, written
from stages.distributed.shards import Target, cut, shard_work
from stages.search.filters import keep_pools

if TYPE_CHECKING:
    import pyarrow as pa

FP16_LARGEST = 65504.0


def read_states(models: Models, table: "pa.Table", *, side: str, layers: Sequence[int]) -> "pa.Table":
    """The table with `vector`: the normed states after the given layers, one behind the other, as fp16."""
    import pyarrow as pa

    states_NKD = _states(models, table, side, layers)
    if not np.isfinite(states_NKD).all() or np.abs(states_NKD).max(initial=0) > FP16_LARGEST:
        raise StageError("the teacher's states do not fit fp16; choose another features.layer")
    values = pa.array(states_NKD.astype(np.float16).reshape(-1))
    return table.append_column("vector", pa.FixedSizeListArray.from_arrays(values, int(np.prod(states_NKD.shape[1:]))))


def embed_layers(models: Models, table: "pa.Table", *, side: str, layers: Sequence[int]) -> "pa.Table":
    """The table with a column `layer {k}` of unit vectors for each layer, as an encoder of k layers gives them."""
    states_NKD = _states(models, table, side, layers)
    units_NKD = states_NKD / np.maximum(np.linalg.norm(states_NKD, axis=-1, keepdims=True), 1e-12)
    for place, layer in enumerate(layers):
        table = table.append_column(
            f"layer {layer}", vector_column(units_NKD[:, place], str(models.directories[TEACHER]))
        )
    return table


def one_layer(table: "pa.Table", layer: int, drop: Sequence[str] = ()) -> "pa.Table":
    """The table with one layer's vectors as `vector`, without the others."""
    others = [name for name in table.column_names if name.startswith("layer ") and name != f"layer {layer}"]
    left = table.drop_columns([*others, *drop])
    return left.rename_columns(["vector" if name == f"layer {layer}" else name for name in left.column_names])


def _states(models: Models, table: "pa.Table", side: str, layers: Sequence[int]) -> np.ndarray:
    """Normed states, float32 [N, K, D], of K layers, counted from 1."""
    import torch

    encoder, rows = models.encoder(TEACHER), models.reader(side).rows(table)
    states_NKD = np.zeros((len(rows), len(layers), encoder.dim), np.float32)
    for start, batch in encoder.batches(rows, models.batch_size):
        with torch.inference_mode():
            states_KBD = encoder.states_by_layer(batch)[[layer - 1 for layer in layers]]
        states_NKD[start : start + models.batch_size] = states_KBD.transpose(0, 1).float().cpu().numpy()
    return states_NKD


# ----------------------------------------------------------------------------------- vectors of the evaluation pools


@dataclass
class PoolVectors:
    """The teacher's vectors of an index's candidates, by layer: what is in the store, and the work for what is not."""

    shelves: dict[int, Shared]
    work: list[Work]
    """What a pool of actors has to carry out before `artifacts` is called."""

    @classmethod
    def open(cls, context: Context, stack: ExitStack, card: Mapping[str, Any], layers: Sequence[int]) -> "PoolVectors":
        """The vectors after each of `layers`; `stack` holds their leases. `card` is the index's `retriever.json`."""
        inputs = ("ingest", "backbone")
        shelves = {
            layer: stack.enter_context(
                context.shared(TEACHER, __name__, inputs, {"layer": layer, "split": card["split"]})
            )
            for layer in layers
        }
        missing = {layer: shelf.output for layer, shelf in shelves.items() if shelf.output is not None}
        if not missing:
            return cls(shelves, [])
        targets = [
            Target(output, EMBEDDINGS, partial(one_layer, layer=layer, drop=("text", "image_id")))
            for layer, output in missing.items()
        ]
        ingest = context.inputs["ingest"]
        compute = partial(embed_layers, side="candidate", layers=list(missing))
        shards = cut(ingest, "candidates", context.cluster.rows_per_shard)
        keep = partial(keep_pools, pools=sorted(card["pools"]))
        return cls(shelves, shard_work(targets, shards, ingest, compute, columns=CANDIDATE_COLUMNS, keep=keep))

    def artifacts(self, rows: int) -> dict[int, Artifact]:
        """layer → artifact with `embeddings/`, once the work is done.

        Raises:
            StageError: there are not `rows` vectors.
        """
        for shelf in self.shelves.values():
            if shelf.output is not None:
                written(shelf.output, EMBEDDINGS, rows)
        return {layer: shelf.commit() for layer, shelf in self.shelves.items()}
