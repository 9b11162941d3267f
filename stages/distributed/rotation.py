"""The rotation between a teacher's vectors and its student's, where the stages after distillation meet it.

`distill` finds it (`stages.learn.turning`), and a student keeps its directions from then on: the artifact of each of
its stages holds `rotation.npy`, float32 [T, D]. A teacher's vector times it is what the student was to give.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contract.context import Artifact, Attempt

if TYPE_CHECKING:
    import pyarrow as pa

ROTATION = "rotation.npy"


def keep_rotation(output: Attempt, trained: Path | None, given: np.ndarray | None) -> bool:
    """Writes the rotation to a student's artifact; whether there is one.

    Args:
        output: of `distill` or `train`.
        trained: the directory in which a training may have left it.
        given: that of the stage before.
    """
    if given is not None:
        with output.open(ROTATION) as file:
            np.save(file, given)
    elif trained and (trained / ROTATION).exists():
        output.upload(trained / ROTATION, ROTATION)
    else:
        return False
    return True


def read_rotation(student: Artifact) -> np.ndarray | None:
    """The rotation of an artifact of `distill` or `train`; None where the teacher was not turned."""
    return np.load(student.local(ROTATION)) if student.manifest["metrics"].get("turned") else None


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
        with output.open(f"{prefix}/{Path(path).name}") as file:
            pq.write_table(table if turn_DD is None else turn_table(table, turn_DD), file)


def turn_table(table: "pa.Table", turn_DD: np.ndarray) -> "pa.Table":
    """The table with its vectors multiplied by `turn_DD`, as fp16 like before."""
    from stages.distributed.embedding import vector_column

    column = table["vector"].combine_chunks()
    vectors_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float32)
    turned = vector_column(vectors_ND @ turn_DD, "the teacher, turned,")
    return table.set_column(table.column_names.index("vector"), "vector", turned)
