"""The teacher read by layers: its states for distillation, and its vectors for an evaluation.

One forward pass gives the state after every layer, and `norm(state after layer k)` is exactly what a student of k
layers would give before any training. So the rows of an evaluation that stand for the teacher and for "the same
layers, cut and not trained" cost one pass together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.contract.context import Artifact, StageError
from stages.distributed.actors import TEACHER, Models
from stages.distributed.embedding import vector_column

if TYPE_CHECKING:
    import pyarrow as pa

FP16_LARGEST = 65504.0


@dataclass(frozen=True)
class ReadOut:
    """What is read of the teacher: the normed state after `layer` layers, from 1, less `mean` where there is one."""

    layer: int
    mean: tuple[float, ...] = ()

    @property
    def column(self) -> str:
        """Where `embed_layers` puts it."""
        return f"layer {self.layer}{' centred' if self.mean else ''}"


def taught(features: Artifact) -> ReadOut | None:
    """What the student was compared with, as `features.json` has it; None for a teacher from outside."""
    made = features.read_json("features.json")
    return ReadOut(made["layer"], tuple(made.get("mean", ()))) if "layer" in made else None


def read_states(
    models: Models, table: "pa.Table", *, side: str, layers: Sequence[int], rows: Artifact | None = None
) -> "pa.Table":
    """The table with `vector`: the normed states after the given layers, one behind the other, as fp16.

    `rows` is the artifact that the table is of, where that is another one than the actors were given.
    """
    states_NKD = _states(models, table, side, layers, rows)
    return table.append_column("vector", states_column(states_NKD, "choose another features.layer"))


def states_column(states: np.ndarray, mend: str) -> "pa.Array":
    """A teacher's states [N, ...] as fixed_size_list<float16>.

    Raises:
        StageError: a value has no place in fp16; `mend` is what to do then.
    """
    import pyarrow as pa

    if not np.isfinite(states).all() or np.abs(states).max(initial=0) > FP16_LARGEST:
        raise StageError(f"the teacher's states do not fit fp16; {mend}")
    values = pa.array(states.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, int(np.prod(states.shape[1:])))


def embed_layers(models: Models, table: "pa.Table", *, side: str, read: Sequence[ReadOut]) -> "pa.Table":
    """The table with a column of unit vectors for each of `read`, as an encoder of so many layers gives them."""
    layers = sorted({one.layer for one in read})
    states_NKD = _states(models, table, side, layers)
    for one in read:
        states_ND = states_NKD[:, layers.index(one.layer)]
        states_ND = states_ND - np.array(one.mean, np.float32) if one.mean else states_ND
        units_ND = states_ND / np.maximum(np.linalg.norm(states_ND, axis=-1, keepdims=True), 1e-12)
        table = table.append_column(one.column, vector_column(units_ND, f"the {TEACHER}"))
    return table


def one_layer(table: "pa.Table", read: ReadOut, drop: Sequence[str] = ()) -> "pa.Table":
    """The table with the vectors of `read` as `vector`, without the others."""
    others = [name for name in table.column_names if name.startswith("layer ") and name != read.column]
    left = table.drop_columns([*others, *drop])
    return left.rename_columns(["vector" if name == read.column else name for name in left.column_names])


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
