"""Mining hard negatives with the distilled student: the optional first step of the stage `train`.

Inputs: ingest, and the student as distillation left it, which is the previous student that the training starts from.
Steps: embed the training candidates with it and keep them as Parquet among the stage's work in the store; stream the
train queries through the same model and, block by block, past the stored candidates (`stages.mining.negatives`).
Outputs in train's artifact: `negatives/`, which says for each query what was chosen, with scores, and what was left
out and why, `mining.json` with sums and `mining.txt` with examples.

It is a step of `train` and not a stage of its own: its result is only read there, and with it switched off nothing of
it is in anybody's key. A killed run keeps the parts that were complete.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pyarrow.fs import FileType

from stages.contract.context import Artifact, Attempt, Context, StageError
from stages.data.keys import hash_ids
from stages.distributed.embedding import embed_rows
from stages.distributed.shards import parquet_below
from stages.mining.audit import examples_of
from stages.mining.negatives import COLUMNS, Mined, Rule, mine_block
from stages.model import checkpoint
from stages.search.exact import ExactIndex

QUERIES = {"cpu": 8192, "cuda": 65536}
"""Queries that pass the candidates together, by device. Memory as `stages.mining.negatives` has it."""
QUERY_COLUMNS = ["qid", "dataset_id", "modality", "target_modality", "text", "image_id", "positives"]


def mine_negatives(context: Context, student: Artifact) -> Mined:
    """Mines, writes what `train` keeps of it, and returns the table.

    Args:
        context: of `train`.
        student: holds the model that mines.

    Raises:
        StageError: there is nothing to mine from, or not one query got a negative.
    """
    output = context.output
    candidates = _once(output, "candidates", partial(_write_candidates, context, student))
    negatives = _once(output, "negatives", partial(_write_negatives, context, student, candidates))
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


def _write_candidates(context: Context, student: Artifact, path: str) -> None:
    """The training candidates with vectors and hashes: those of the pool `union_train` and those of no pool at all.

    Others are only there to be searched in validation or test, and must not be trained on.
    """
    ingest = context.inputs["ingest"]
    stored = ray.data.read_parquet(ingest.files("candidates"), filesystem=ingest.filesystem)
    columns = ["did", "modality", "text", "image_id", "content_id", "pools"]
    pooled = stored.select_columns(columns).map_batches(keep_training, batch_format="pyarrow", zero_copy_batch=True)
    embedded = embed_rows(context, pooled, model=checkpoint.place(student), side="candidate")
    hashed, filesystem = embedded.map_batches(with_hashes, batch_format="pyarrow"), context.output.filesystem
    # see `parquet_options`
    hashed.write_parquet(path, filesystem=filesystem, use_dictionary=["modality"], write_statistics=False)
    if not parquet_below(filesystem, path):
        raise StageError("no candidate is in the pool union_train, so there is nothing to mine; set per_query=0")


def keep_training(table: pa.Table) -> pa.Table:
    """The candidates of the pool that training may use."""
    wanted = [_trains(pools) for pools in table["pools"].to_pylist()]
    return table.filter(pa.array(wanted, pa.bool_())).drop_columns(["pools"])


def _trains(pools: list[str]) -> bool:
    return "union_train" in pools or not pools


def with_hashes(table: pa.Table) -> pa.Table:
    """The columns that `stages.mining.negatives` reads."""
    hashed = {
        "did_hash": hash_ids(table["did"].to_pylist()),
        "content_hash": hash_ids(table["content_id"].to_pylist()),
    }
    for name, values in hashed.items():
        table = table.append_column(name, pa.array(values, pa.uint64()))
    return table.select(COLUMNS)


def _write_negatives(context: Context, student: Artifact, candidates: list[str], path: str) -> None:
    """The train queries past the candidates: embedded by actors, mined by tasks that each stream the whole pool."""
    ingest = context.inputs["ingest"]
    stored = ray.data.read_parquet(ingest.files("queries"), filesystem=ingest.filesystem)
    train = stored.map_batches(_train_queries, fn_kwargs={"columns": QUERY_COLUMNS}, batch_format="pyarrow")
    rule, filesystem = context.params.train.mine, context.output.filesystem
    embedded = embed_rows(context, train, model=checkpoint.place(student), side="query")
    gpus = context.cluster.gpus_per_worker
    device, resources = ("cuda", {"num_gpus": gpus}) if gpus else ("cpu", {})
    if gpus:  # the actors that embed have them, and give them up at the end alone
        embedded = embedded.materialize()
    index = ExactIndex(tuple(candidates), filesystem)
    arguments = {"index": index, "rule": Rule(rule.per_query, rule.margin), "device": device}
    mined = embedded.map_batches(
        _mine, fn_kwargs=arguments, batch_size=QUERIES[device], batch_format="pyarrow", **resources
    )
    mined.write_parquet(path, filesystem=filesystem)


def _train_queries(table: pa.Table, columns: list[str]) -> pa.Table:
    return table.filter(pc.equal(table["split"], "train")).select(columns)


def _mine(table: pa.Table, index: ExactIndex, rule: Rule, device: str) -> pa.Table:
    return mine_block(table, lambda: index.batches(COLUMNS), rule, device)


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
