"""The queries of an evaluation as each model embeds them: one file a block and model, which a killed run keeps."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.contract.context import Attempt, Context
from stages.distributed import teacher
from stages.distributed.embedding import embed_table
from stages.distributed.pool import Models, Work
from stages.distributed.shards import Target, files, write_table

if TYPE_CHECKING:
    from ray import ObjectRef

    from stages.evaluation.sets import EvaluationSet

STUDENT = "student"


def put_blocks(context: Context, split: str, sets: "Sequence[EvaluationSet]") -> list["ObjectRef"]:
    """The asked queries in the object store, block by block, so that the driver holds one block at a time."""
    import ray

    from stages.evaluation.sets import query_blocks

    return [ray.put(block) for block in query_blocks(context.inputs["ingest"], split, sets)]


def query_work(
    context: Context, blocks: Sequence["ObjectRef"], layers: Mapping[str, int], batch_size: int
) -> list[Work]:
    """The work that writes each block's vectors: by the student, and by the teacher at the layers of `layers`.

    Args:
        layers: name → teacher layer, such as {"teacher": 28, "cut": 12}; empty without a teacher.
    """
    output = context.output
    student = partial(embed_table, model=STUDENT, side="query", batch_size=batch_size)
    targets = [Target(output, prefix_of(name), partial(teacher.one_layer, layer=layers[name])) for name in layers]
    read = partial(teacher.embed_layers, side="query", layers=list(layers.values()), batch_size=batch_size)
    asked = [(student, [Target(output, prefix_of(STUDENT), unchanged)]), *([(read, targets)] if layers else [])]
    work: list[Work] = []
    for compute, written in asked:
        done = set.intersection(*(set(output.adopt(one.prefix)) for one in written))
        work += [
            partial(write_block, block=block, name=name, compute=compute, targets=written)
            for number, block in enumerate(blocks)
            if (name := f"{number:06d}.parquet") not in done
        ]
    return work


def write_block(models: Models, *, block: "ObjectRef", name: str, compute: Any, targets: Sequence[Target]) -> None:
    """Embeds a block and writes its file to each target."""
    import ray

    write_table(compute(models, ray.get(block)), name, targets)


def unchanged(table: Any) -> Any:
    """The table as it was computed."""
    return table


def prefix_of(model: str) -> str:
    """The directory of a model's query vectors in the artifact."""
    return f"queries/{model}"


def vector_files(output: Attempt, model: str) -> list[str]:
    """The files of a model's query vectors, block by block."""
    return files(output, prefix_of(model))
