"""The teacher's vectors of the evaluation pools: artifacts of their own in the store, `teacher/{key}`, one a read-out.

They are the most expensive part of an evaluation and depend on neither the student nor a report: all students of one
backbone share them, and so does an index whose candidates are the teacher's.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.contract.context import Artifact, Attempt, Context, Shared
from stages.distributed.actors import TEACHER, Work, carry_out
from stages.distributed.embedding import vector_column
from stages.distributed.pools import CANDIDATE_COLUMNS, EMBEDDINGS, written
from stages.distributed.rotation import read_rotation
from stages.distributed.shards import Target, cut, shard_work, write_file
from stages.distributed.teacher import ReadOut, embed_layers, one_layer
from stages.model import checkpoint
from stages.search.filters import keep_pools

if TYPE_CHECKING:
    import pyarrow as pa


VERSION = 1
"""Raised for a change that the code here does not show, as with a stage's."""


@dataclass
class PoolVectors:
    """The teacher's vectors of an index's candidates, by layer: what is in the store, and the work for what is not."""

    shelves: dict[ReadOut, Shared]
    work: list[Work]
    """What a pool of actors has to carry out before `artifacts` is called."""

    @classmethod
    def open(
        cls, context: Context, stack: ExitStack, card: Mapping[str, Any], read: Collection[ReadOut]
    ) -> "PoolVectors":
        """The vectors of each of `read`; `stack` holds their leases. `card` is the index's `retriever.json`."""
        shelves = {one: stack.enter_context(shelf_of(context, card["split"], one)) for one in read}
        missing = {one: shelf.output for one, shelf in shelves.items() if shelf.output is not None}
        if not missing:
            return cls(shelves, [])
        targets = [
            Target(output, EMBEDDINGS, partial(one_layer, read=one, drop=("text", "image_id")))
            for one, output in missing.items()
        ]
        ingest = context.inputs["ingest"]
        compute = partial(embed_layers, side="candidate", read=list(missing))
        shards = cut(ingest, "candidates", context.cluster.rows_per_shard)
        keep = partial(keep_pools, pools=sorted(card["pools"]))
        return cls(shelves, shard_work(targets, shards, ingest, compute, columns=CANDIDATE_COLUMNS, keep=keep))

    def artifacts(self, rows: int) -> dict[ReadOut, Artifact]:
        """Each read-out's artifact with `embeddings/`, once the work is done.

        Raises:
            StageError: there are not `rows` vectors.
        """
        for shelf in self.shelves.values():
            if shelf.output is not None:
                written(shelf.output, EMBEDDINGS, rows)
        return {one: shelf.commit() for one, shelf in self.shelves.items()}


def shelf_of(context: Context, split: str, read: ReadOut) -> AbstractContextManager[Shared]:
    """The artifact of one read-out; a mean that is taken off is that of the stage's features."""
    inputs, params = ["ingest", "backbone"], {"layer": read.layer, "split": split}
    if not read.mean:
        return context.shared(TEACHER, __name__, inputs, params)
    return context.shared(TEACHER, __name__, [*inputs, "features"], {**params, "centred": True})


def copy_pools(context: Context, summary: Mapping[str, Any], read: ReadOut, prefix: str) -> dict[str, Any]:
    """The teacher's vectors of the summary's pools as this artifact's `prefix/`; see `written`, `rate`.

    Copied, so that an index holds what it searches, like any other, and turned to the student's directions where the
    student learnt it so; the teacher reads only what no run has read.

    Args:
        summary: `split`, `pools` and `rows`.
        read: what is read of the teacher.
    """
    with ExitStack() as stack:
        vectors = PoolVectors.open(context, stack, summary, [read])
        carry_out(context, {TEACHER: checkpoint.place(context.inputs["backbone"])}, vectors.work, label="index")
        stored = vectors.artifacts(summary["rows"])[read]
    rotation = read_rotation(context.inputs["train"])
    turn_files(stored.files(EMBEDDINGS), stored.filesystem, context.output, prefix, rotation)
    return written(context.output, prefix, summary["rows"]) | {"computed": len(vectors.work)}


def turn_files(
    source: Sequence[str], filesystem: object, output: Attempt, prefix: str, turn_DD: np.ndarray | None
) -> None:
    """Copies files of vectors to `prefix/` of the artifact, each turned on the way; one file is held at a time.

    Args:
        source: Parquet files with the column `vector`, paths in `filesystem`.
        turn_DD: what each vector is multiplied with; None copies them as they are.
    """
    import pyarrow.parquet as pq

    for path in source:
        table = pq.read_table(path, filesystem=filesystem)
        turned = table if turn_DD is None else turn_table(table, turn_DD)
        write_file(turned, output, f"{prefix}/{PurePosixPath(path).name}")


def turn_table(table: "pa.Table", turn_DD: np.ndarray) -> "pa.Table":
    """The table with its vectors multiplied by `turn_DD`, as fp16 like before."""
    column = table["vector"].combine_chunks()
    vectors_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float32)
    turned = vector_column(vectors_ND @ turn_DD, "the teacher, turned,")
    return table.set_column(table.column_names.index("vector"), "vector", turned)
