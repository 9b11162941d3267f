"""The queries of an evaluation as each model embeds them: one file for each block and model, which a killed run keeps.

Blocks go through files and not through Ray's object store: actors that were handed references could not be started
again, and Ray says so in words that look like an error.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from stages.contract.context import Attempt, Context
from stages.distributed import teacher
from stages.distributed.actors import STUDENT, Models, Work
from stages.distributed.embedding import embed_table
from stages.distributed.shards import Target, files, write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.evaluation.sets import EvaluationSet

ASKED = "asked"
"""What the queries without vectors are stored under."""


def write_asked(context: Context, split: str, sets: "Sequence[EvaluationSet]") -> list[str]:
    """Writes the asked queries block by block, so that the driver holds one block at a time; the files."""
    from stages.evaluation.sets import query_blocks

    target = Target(context.output, prefix_of(ASKED), unchanged)
    done = set(context.output.adopt(target.prefix))
    for number, block in enumerate(query_blocks(context.inputs["ingest"], split, sets)):
        if (name := f"{number:06d}.parquet") not in done:
            write_table(block, name, [target])
    return files(context.output, target.prefix)


def query_work(context: Context, asked: Sequence[str], layers: Mapping[str, teacher.ReadOut]) -> list[Work]:
    """The work that writes each block's vectors: by the student, and by the teacher at the layers of `layers`.

    Args:
        asked: files of `write_asked`.
        layers: name → teacher layer, such as {"teacher": ReadOut(28), "cut": ReadOut(12)}; empty without a teacher.
    """
    output = context.output
    student = partial(embed_table, model=STUDENT, side="query")
    targets = [Target(output, prefix_of(name), partial(teacher.one_layer, read=layers[name])) for name in layers]
    read = partial(teacher.embed_layers, side="query", read=list(layers.values()))
    readings = [(student, [Target(output, prefix_of(STUDENT), unchanged)]), *([(read, targets)] if layers else [])]
    work: list[Work] = []
    for compute, written in readings:
        done = set.intersection(*(set(output.adopt(one.prefix)) for one in written))
        write = partial(write_vectors, filesystem=output.filesystem, compute=compute, targets=written)
        work += [Work(write, {"path": path}) for path in asked if PurePosixPath(path).name not in done]
    return work


def write_vectors(models: Models, *, path: str, filesystem: Any, compute: Any, targets: Sequence[Target]) -> None:
    """Embeds a block and writes its file to each target."""
    import pyarrow.parquet as pq

    block = pq.read_table(path, filesystem=filesystem)
    write_table(compute(models, block), PurePosixPath(path).name, targets)


def unchanged(table: "pa.Table") -> "pa.Table":
    """The table as it was computed."""
    return table


def prefix_of(model: str) -> str:
    """The directory of a model's query vectors in the artifact."""
    return f"queries/{model}"


def vector_files(output: Attempt, model: str) -> list[str]:
    """The files of a model's query vectors, block by block."""
    return files(output, prefix_of(model))
