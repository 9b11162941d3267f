"""Mining hard negatives with the distilled student: the optional first step of the stage `train`.

Inputs: ingest, and the student as distillation left it, which is the previous student that the training starts from.
Steps: embed the training candidates and the train queries with it, shard by shard, below `mining/` of the artifact to
be, which goes when all is mined; pass the queries, block by block, past the candidates (`stages.mining.negatives`).
Outputs in train's artifact: `negatives/`, which says for each query what was chosen, with scores, and what was left
out and why, `mining.json` with sums and `mining.txt` with examples.

It is a step of `train` and not a stage of its own: its result is only read there, and with it switched off nothing of
it is in anybody's key. A killed run keeps the shards that were embedded, and the negatives once all are mined.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pyarrow.fs import FileType

from stages.contract.context import Artifact, Attempt, Context, StageError
from stages.data.keys import hash_ids
from stages.distributed import lessons
from stages.distributed.actors import STUDENT, Work, carry_out
from stages.distributed.embedding import embed_table
from stages.distributed.shards import Keep, Target, count_rows, cut, files, parquet_below, shard_work
from stages.mining.audit import examples_of
from stages.mining.negatives import COLUMNS, Mined, Rule, mine_block
from stages.model import checkpoint
from stages.model.reader import Side
from stages.search.exact import ExactIndex

QUERIES = {"cpu": 8192, "cuda": 65536}
"""Queries that pass the candidates together, by device. Memory as `stages.mining.negatives` has it."""
QUERY_COLUMNS = ["split", "qid", "dataset_id", "modality", "target_modality", "text", "image_id", "positives"]
CANDIDATE_COLUMNS = ["did", "modality", "text", "image_id", "content_id", "pools"]
EMBEDDED = "mining"
"""Where models write, in files of the artifact that are gone when it is whole."""


def mine_negatives(context: Context, student: Artifact) -> Mined:
    """Mines, writes what `train` keeps of it, and returns the table.

    Args:
        context: of `train`.
        student: holds the model that mines.

    Raises:
        StageError: there is nothing to mine from, or not one query got a negative.
    """
    output = context.output
    negatives = _once(output, "negatives", partial(_write_negatives, context, student))
    mined = Mined(output.stage, output.key, tuple(negatives), output.filesystem)
    summary = _summarise(mined)
    if not summary["with negatives"]:
        margin = context.params.train.mine.margin
        raise StageError(f"train.mine.margin={margin} leaves no query a negative; raise it, or set per_query=0")
    _keep(output, negatives)
    context.output.write_json("mining.json", summary)
    examples = examples_of(context.inputs["ingest"], mined)
    context.output.write_bytes("mining.txt", examples.encode())
    context.tracker.text("mining.txt", examples)
    context.tracker.metrics({f"mined {name}": value for name, value in summary.items()})
    return mined


def _once(output: Attempt, name: str, write: Callable[[str], None]) -> list[str]:
    """The files that `write(path)` makes in a directory, unless an earlier attempt did; a part is thrown away."""
    filesystem, path = output.filesystem, f"{output.work_uri}/mining/{name}"
    if filesystem.get_file_info(f"{path}.done").type == FileType.NotFound:
        filesystem.create_dir(path, recursive=True)
        filesystem.delete_dir_contents(path)
        write(path)
        with filesystem.open_output_stream(f"{path}.done"):
            pass
    return parquet_below(filesystem, path)


def _keep(output: Attempt, paths: list[str]) -> None:
    """Copies the mined table from the work into the artifact."""
    for path in paths:
        name = PurePosixPath(path).name
        with output.filesystem.open_input_stream(path) as mined, output.open(f"negatives/{name}") as kept:
            shutil.copyfileobj(mined, kept)


def _write_negatives(context: Context, student: Artifact, path: str) -> None:
    """The train queries past the candidates, by tasks that each stream the whole pool; what was embedded goes."""
    output, rule = context.output, context.params.train.mine
    candidates, queries = embed(context, student)
    gpus = context.cluster.gpus_per_worker
    device, resources = ("cuda", {"num_gpus": gpus}) if gpus else ("cpu", {})
    index = ExactIndex(tuple(candidates), output.filesystem)
    arguments = {"index": index, "rule": Rule(rule.per_query, rule.margin), "device": device}
    mined = ray.data.read_parquet(queries, filesystem=output.filesystem).map_batches(
        _mine, fn_kwargs=arguments, batch_size=QUERIES[device], batch_format="pyarrow", **resources
    )
    mined.write_parquet(path, filesystem=output.filesystem)
    output.filesystem.delete_dir(f"{output.base}/{EMBEDDED}")


def _mine(table: pa.Table, index: ExactIndex, rule: Rule, device: str) -> pa.Table:
    return mine_block(table, lambda: index.batches(COLUMNS), rule, device)


def embed(context: Context, student: Artifact) -> tuple[list[str], list[str]]:
    """Files with vectors of the training candidates, and of the train queries."""
    output, ingest = context.output, context.inputs["ingest"]
    hashes = lessons.write_hashes(context, "mining-named", named_by_train(ingest))
    training = partial(keep_training, named=partial(lessons.is_among, path=hashes, filesystem=output.filesystem))
    sides: tuple[tuple[Side, str, list[str], Keep, Keep], ...] = (
        ("candidate", "candidates", CANDIDATE_COLUMNS, training, with_hashes),
        ("query", "queries", QUERY_COLUMNS, keep_train, without_split),
    )
    work: list[Work] = []
    expected: dict[str, int] = {}
    for side, rows, columns, keep, finish in sides:
        shards, prefix = cut(ingest, rows, context.cluster.rows_per_shard), f"{EMBEDDED}/{rows}"
        target, compute = Target(output, prefix, finish), partial(embed_table, model=STUDENT, side=side)
        work += shard_work([target], shards, ingest, compute, columns=columns, keep=keep)
        expected[prefix] = len(shards)
    carry_out(context, {STUDENT: checkpoint.place(student)}, work, label="mining")
    for prefix, count in expected.items():
        count_rows(output, prefix, count)
    found, asked = (files(output, prefix) for prefix in expected)
    return found, asked


def named_by_train(ingest: Artifact) -> np.ndarray:
    """Sorted hashes of the positives and hard negatives of all train queries, 8 bytes each."""
    train = lessons.drawn_queries(lessons.Lesson("", ingest), seed=0)  # all of them, whatever the seed
    return lessons.candidate_hashes(ingest, train, ("positives", "negatives"))


def keep_training(table: pa.Table, named: Callable[[list[str]], np.ndarray]) -> pa.Table:
    """The training candidates: those of the pool `union_train`, those of no pool at all, and what train queries name.

    Others are only there to be searched in validation or test, and must not be trained on. In pairs of a user's own
    all candidates are searched, and only the train queries tell which of them may be trained on.
    """
    trains = np.array([_trains(pools) for pools in table["pools"].to_pylist()], bool)
    return table.filter(pa.array(trains | named(table["did"].to_pylist()))).drop_columns(["pools"])


def _trains(pools: list[str]) -> bool:
    return "union_train" in pools or not pools


def with_hashes(table: pa.Table) -> pa.Table:
    """The columns that `stages.mining.negatives` reads of a candidate."""
    hashed = {
        "did_hash": hash_ids(table["did"].to_pylist()),
        "content_hash": hash_ids(table["content_id"].to_pylist()),
    }
    for name, values in hashed.items():
        table = table.append_column(name, pa.array(values, pa.uint64()))
    return table.select(COLUMNS)


def keep_train(table: pa.Table) -> pa.Table:
    """The train queries."""
    return table.filter(pc.equal(table["split"], "train"))


def without_split(table: pa.Table) -> pa.Table:
    """The columns that `stages.mining.negatives` reads of a query."""
    return table.drop_columns(["split"])


def _summarise(mined: Mined) -> dict[str, float]:
    """Sums over the audit table, one file at a time."""
    total = dict.fromkeys(("queries", "with negatives", "negatives", "copies", "too close"), 0)
    for path in mined.paths:
        columns = ["negatives", "copies", "too_close"]
        table = pq.read_table(path, columns=columns, filesystem=mined.filesystem)
        counts = pc.list_value_length(table["negatives"])
        total["queries"] += table.num_rows
        total["with negatives"] += pc.sum(pc.greater(counts, 0)).as_py() or 0
        total["negatives"] += pc.sum(counts).as_py() or 0
        total["copies"] += pc.sum(table["copies"]).as_py() or 0
        total["too close"] += pc.sum(table["too_close"]).as_py() or 0
    return total
