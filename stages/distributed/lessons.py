"""Which rows the teacher reads for a training, and what is kept of them.

A lesson is what the teacher reads for one training: the train queries that the training will come to, which are a pure
function of the seed, and their positives. Both are known by sorted hashes of their ids before anything is read, some 8
bytes each; actors read shards of the ingested rows and keep what is among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from stages.contract.context import Context

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.contract.context import Artifact
    from stages.distributed.actors import Work
    from stages.distributed.shards import Shard

DISTILLED, LABELLED = "features", "labelled"
"""Where the states for distillation lie; and those for the last training, where that has other data."""
_HASHES: "dict[str, np.ndarray]" = {}
"""What this process has read of `write_hashes`, by path."""


@dataclass(frozen=True)
class Lesson:
    """What the teacher reads for one training: of `data`, `most` of the train queries, or all, and their positives."""

    prefix: str
    """Where the states go."""
    data: "Artifact"
    most: int | None = None
    smallest_task: int = 0


def lessons(context: Context) -> list[Lesson]:
    """What distillation will come to; and all of `data` where the last training is taught as well."""
    data, own, asked = context.inputs["ingest"], context.inputs.get("distill.data"), context.params.distill
    taught = context.params.train.taught
    if taught and own is None:
        return [Lesson(DISTILLED, data)]
    distilled = Lesson(DISTILLED, own or data, asked.draws, asked.smallest_task)
    return [distilled, *([Lesson(LABELLED, data)] if taught else [])]


def reading(context: Context, layer: int | None) -> list["Work"]:
    """The work that reads the teacher over the train queries that count and their positives, shard by shard.

    `layer` is one of the backbone, or None for the teacher from outside.
    """
    return [work for lesson in lessons(context) for work in _read(context, lesson, layer)]


def _read(context: Context, lesson: Lesson, layer: int | None) -> list["Work"]:
    from stages.distributed.shards import Target, shard_work

    data, filesystem = lesson.data, context.output.filesystem
    queries = drawn_queries(lesson, context.params.seed)
    positives = candidate_hashes(data, queries)
    among = {
        side: {"path": write_hashes(context, f"{lesson.prefix}-{side}", hashes), "filesystem": filesystem}
        for side, hashes in (("query", queries), ("candidate", positives))
    }
    read = _reader(context, lesson, layer, {"query": queries, "candidate": positives})
    keep = {
        "query": partial(_among_train, **among["query"]),
        "candidate": partial(_among, key="did", **among["candidate"]),
    }
    work: list[Work] = []
    for side, (prefix, shards) in zip(keep, _shards(context, lesson).items(), strict=True):
        target = Target(context.output, f"{lesson.prefix}/{prefix}", partial(_as_features, side=side))
        work += shard_work([target], shards, data, partial(read, side=side), keep=keep[side])
    return work


def _reader(
    context: Context, lesson: Lesson, layer: int | None, needed: dict[str, "np.ndarray"]
) -> Callable[..., "pa.Table"]:
    """What reads a table of a side by the teacher; `needed` are sorted hashes of the ids that it has to know."""
    from stages.distributed import outside
    from stages.distributed.teacher import read_states

    if layer is not None:
        return partial(read_states, layers=(layer,), rows=lesson.data)
    return outside.reader(context.output, context.params.features.teacher, needed, lesson.data)


def _shards(context: Context, lesson: Lesson) -> dict[str, list["Shard"]]:
    """The shards of queries and of candidates."""
    from stages.distributed.shards import cut

    rows = context.cluster.rows_per_shard
    return {prefix: cut(lesson.data, prefix, rows) for prefix in ("queries", "candidates")}


def shard_counts(context: Context) -> dict[str, int]:
    """How many files are to be written below each prefix."""
    return {
        f"{lesson.prefix}/{side}": len(shards)
        for lesson in lessons(context)
        for side, shards in _shards(context, lesson).items()
    }


def _among_train(table: "pa.Table", path: str, filesystem: Any) -> "pa.Table":
    import pyarrow.compute as pc

    return _among(table.filter(pc.equal(table["split"], "train")), "qid", path, filesystem)


def _among(table: "pa.Table", key: str, path: str, filesystem: Any) -> "pa.Table":
    import pyarrow as pa

    return table.filter(pa.array(is_among(table[key].to_pylist(), path, filesystem)))


def is_among(ids: list[str], path: str, filesystem: Any) -> "np.ndarray":
    """Whether the hash of each of N ids is in the file of `write_hashes` at `path`: bool [N]."""
    from stages.data.keys import hash_ids, locate

    return locate(hash_ids(ids), _read_hashes(path, filesystem)) >= 0


def write_hashes(context: Context, name: str, hashes: "np.ndarray") -> str:
    """Sorted hashes as a file that all actors read; its path."""
    path = f"{context.output.work_uri}/{name}.bin"
    with context.output.filesystem.open_output_stream(path) as file:
        file.write(hashes.tobytes())
    return path


def _read_hashes(path: str, filesystem: Any) -> "np.ndarray":
    """The hashes, read once by each process."""
    import numpy as np

    if path not in _HASHES:
        with filesystem.open_input_file(path) as file:
            _HASHES[path] = np.frombuffer(file.read(), np.uint64)
    return _HASHES[path]


def drawn_queries(lesson: Lesson, seed: int) -> "np.ndarray":
    """Sorted hashes of the train queries that a lesson comes to, some 8 bytes each: those of its `PairSampler`."""
    import numpy as np

    from stages.data.order import drawn, task_groups, upsampled
    from stages.data.tables import MappedTable

    queries = MappedTable.open(lesson.data, "queries", "qid", where={"split": "train"})
    group = task_groups(*(queries.column(name).to_numpy() for name in ("dataset_id", "task_id")))
    rows = upsampled(group, lesson.smallest_task)
    return queries.hashes[np.unique(rows if lesson.most is None else drawn(rows, lesson.most, seed))]


def candidate_hashes(data: "Artifact", queries: "np.ndarray", columns: Sequence[str] = ("positives",)) -> "np.ndarray":
    """Sorted hashes of the candidates in `columns` of those train queries, 8 bytes each: all that is held at once."""
    import numpy as np
    import pyarrow.parquet as pq

    from stages.data.keys import hash_ids

    hashes = [np.empty(0, np.uint64)]
    for path in data.files("queries"):
        file = pq.ParquetFile(path, filesystem=data.filesystem)
        for batch in file.iter_batches(columns=["split", "qid", *columns]):
            drawn = _among_drawn(batch, queries)
            dids = chain.from_iterable(chain.from_iterable(drawn[name].to_pylist() for name in columns))
            hashes.append(np.unique(hash_ids(dids)))
    return np.unique(np.concatenate(hashes))


def _among_drawn(batch: "pa.RecordBatch", queries: "np.ndarray") -> "pa.RecordBatch":
    import pyarrow as pa
    import pyarrow.compute as pc

    from stages.data.keys import hash_ids, locate

    train = batch.filter(pc.equal(batch["split"], "train"))
    return train.filter(pa.array(locate(hash_ids(train["qid"].to_pylist()), queries) >= 0))


def _as_features(table: "pa.Table", side: str) -> "pa.Table":
    import pyarrow as pa

    from stages.data.schemas import FEATURES

    columns = [pa.array([side] * len(table), pa.string()), table["qid" if side == "query" else "did"], table["vector"]]
    return pa.table(columns, schema=FEATURES(table["vector"].type.list_size))


def mean_state(context: Context, dim: int) -> "np.ndarray | None":
    """The mean [D] of the states that distillation comes to, or the last training alone; None where none was read.

    A step has as many queries as positives, so both sides weigh the same: it is the mean of what a student meets.
    """
    from stages.evaluation.depth import mean_of_sides

    for lesson in lessons(context):
        if means := _means_of_sides(context, lesson, dim):
            return mean_of_sides(means)
    return None


def _means_of_sides(context: Context, lesson: Lesson, dim: int) -> "list[np.ndarray]":
    """The mean [D] of each side that a lesson has rows of, summed by Ray tasks in float64."""
    import ray

    from stages.distributed.shards import files

    add_up, means = ray.remote(num_cpus=1)(sum_states), []
    for side in ("queries", "candidates"):
        paths = files(context.output, f"{lesson.prefix}/{side}")
        parts = ray.get([add_up.remote(path, context.output.filesystem, dim) for path in paths])
        if rows := sum(count for count, _ in parts):
            means.append(sum(total_D for _, total_D in parts) / rows)
    return means


def sum_states(path: str, filesystem: Any, dim: int) -> "tuple[int, np.ndarray]":
    """(rows, the sum [D] of their states in float64) of a file of features."""
    import numpy as np
    import pyarrow.parquet as pq

    rows, total_D = 0, np.zeros(dim)
    for batch in pq.ParquetFile(path, filesystem=filesystem).iter_batches(columns=["vector"]):
        states_ND = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        rows, total_D = rows + len(states_ND), total_D + states_ND.sum(axis=0, dtype=np.float64)
    return rows, total_D
