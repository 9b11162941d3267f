"""The teacher read by layers: its states for distillation, and its vectors for an evaluation.

One forward pass gives the state after every layer, and `norm(state after layer k)` is exactly what a student of k
layers would give before any training. So the rows of an evaluation that stand for the teacher and for "the same
layers, cut and not trained" cost one pass together.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.contract.context import Artifact, StageError
from stages.distributed.actors import TEACHER, Models
from stages.distributed.embedding import vector_column

if TYPE_CHECKING:
    import pyarrow as pa

FP16_LARGEST = 65504.0


def read_states(
    models: Models, table: "pa.Table", *, side: str, layers: Sequence[int], rows: Artifact | None = None
) -> "pa.Table":
    """The table with `vector`: the normed states after the given layers, one behind the other, as fp16.

    `rows` is the artifact that the table is of, where that is another one than the actors were given.
    """
    import pyarrow as pa

    states_NKD = _states(models, table, side, layers, rows)
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


def _states(
    models: Models, table: "pa.Table", side: str, layers: Sequence[int], source: Artifact | None = None
) -> np.ndarray:
    """Normed states, float32 [N, K, D], of K layers, counted from 1."""
    import torch

    encoder, rows = models.encoder(TEACHER), models.reader(side, source).rows(table)
    states_NKD = np.zeros((len(rows), len(layers), encoder.dim), np.float32)
    for start, batch in encoder.batches(rows, models.batch_size):
        with torch.inference_mode():
            states_KBD = encoder.states_by_layer(batch)[[layer - 1 for layer in layers]]
        states_NKD[start : start + models.batch_size] = states_KBD.transpose(0, 1).float().cpu().numpy()
    return states_NKD
