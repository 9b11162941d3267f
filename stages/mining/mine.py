"""Mining hard negatives with the distilled student: the optional first step of the stage `train`.

Inputs: ingest, and the student as distillation left it, which is the previous student that the training starts from.
Steps: embed the training candidates with it and keep them as Parquet in the stage's work directory; stream the train
queries through the same model and, block by block, past the stored candidates (`stages.mining.negatives`). Outputs in
train's artifact: `negatives/`, which says for each query what was chosen, with scores, and what was left out and why,
`mining.json` with sums and `mining.txt` with examples.

It is a step of `train` and not a stage of its own: its result is only read there, and with it switched off nothing of
it is in anybody's key. A killed run keeps the parts that were complete.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pyarrow.fs import LocalFileSystem

from stages.contract.context import Context, StageError
from stages.data.keys import hash64, hash_ids
from stages.distributed.embedding import embed_rows
from stages.mining.audit import examples_of
from stages.mining.negatives import COLUMNS, Mined, Rule, mine_block
from stages.search.exact import ExactIndex

QUERIES = {"cpu": 8192, "cuda": 65536}
"""Queries that pass the candidates together, by device. Memory as `stages.mining.negatives` has it."""
QUERY_COLUMNS = ["qid", "dataset_id", "modality", "target_modality", "text", "image_id", "positives"]


def mine_negatives(context: Context, model: Path) -> Mined:
    """Mines, writes what `train` keeps of it, and returns the table.

    Raises:
        StageError: there is nothing to mine from, or not one query got a negative.
    """
    # A student that was distilled again lies at another place, and what another one mined is not this one's.
    work = context.output.work / "mining" / f"{hash64(str(model)):016x}"
    candidates = _once(work / "candidates", lambda path: _write_candidates(context, model, path))
    negatives = _once(work / "negatives", lambda path: _write_negatives(context, model, candidates, path))
    mined = Mined(context.output.stage, context.output.key, tuple(_files(negatives)), LocalFileSystem())
    summary = _summarise(mined)
    if not summary["with negatives"]:
        margin = context.params.train.mine.margin
        raise StageError(f"train.mine.margin={margin} leaves no query a negative; raise it, or set per_query=0")
    context.output.upload(negatives, "negatives")
    context.output.write_json("mining.json", summary)
    examples = examples_of(context.inputs["ingest"], mined)
    context.output.write_bytes("mining.txt", examples.encode())
    context.tracker.text("mining.txt", examples)
    context.tracker.metrics({f"mined {name}": value for name, value in summary.items()})
    return mined


def _once(path: Path, write: Callable[[Path], None]) -> Path:
    """The directory that `write(path)` fills, unless an earlier attempt filled it; a part of one is thrown away."""
    done = path.with_name(f"{path.name}.done")
    if not done.exists():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        write(path)
        done.touch()
    return path


def _files(path: Path) -> list[str]:
    return sorted(str(file) for file in path.glob("*.parquet"))


def _write_candidates(context: Context, model: Path, path: Path) -> None:
    """The training candidates with vectors and hashes: those of the pool `union_train` and those of no pool at all.

    Others are only there to be searched in validation or test, and must not be trained on.
    """
    ingest = context.inputs["ingest"]
    stored = ray.data.read_parquet(ingest.files("candidates"), filesystem=ingest.filesystem)
    columns = ["did", "modality", "text", "image_id", "content_id", "pools"]
    pooled = stored.select_columns(columns).map_batches(keep_training, batch_format="pyarrow", zero_copy_batch=True)
    embedded = embed_rows(context, pooled, model=model, side="candidate")
    hashed = embedded.map_batches(with_hashes, batch_format="pyarrow")
    hashed.write_parquet(str(path), use_dictionary=["modality"], write_statistics=False)  # see `parquet_options`
    if not _files(path):
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


def _write_negatives(context: Context, model: Path, candidates: Path, path: Path) -> None:
    """The train queries past the candidates: embedded by actors, mined by tasks that each stream the whole pool."""
    ingest = context.inputs["ingest"]
    stored = ray.data.read_parquet(ingest.files("queries"), filesystem=ingest.filesystem)
    train = stored.map_batches(_train_queries, fn_kwargs={"columns": QUERY_COLUMNS}, batch_format="pyarrow")
    rule = context.params.train.mine
    embedded = embed_rows(context, train, model=model, side="query")
    gpus = context.cluster.gpus_per_worker
    device, resources = ("cuda", {"num_gpus": gpus}) if gpus else ("cpu", {})
    if gpus:  # the actors that embed have them, and give them up at the end alone
        embedded = embedded.materialize()
    arguments = {"files": tuple(_files(candidates)), "rule": Rule(rule.per_query, rule.margin), "device": device}
    mined = embedded.map_batches(
        _mine, fn_kwargs=arguments, batch_size=QUERIES[device], batch_format="pyarrow", **resources
    )
    mined.write_parquet(str(path))


def _train_queries(table: pa.Table, columns: list[str]) -> pa.Table:
    return table.filter(pc.equal(table["split"], "train")).select(columns)


def _mine(table: pa.Table, files: tuple[str, ...], rule: Rule, device: str) -> pa.Table:
    index = ExactIndex(files, LocalFileSystem())
    return mine_block(table, lambda: index.batches(COLUMNS), rule, device)


def _summarise(mined: Mined) -> dict[str, float]:
    """Sums over the audit table, one file at a time."""
    total = dict.fromkeys(("queries", "with negatives", "negatives", "copies", "too close"), 0)
    for path in mined.paths:
        table = pq.read_table(path, columns=["negatives", "copies", "too_close"])
        counts = pc.list_value_length(table["negatives"])
        total["queries"] += table.num_rows
        total["with negatives"] += pc.sum(pc.greater(counts, 0)).as_py() or 0
        total["negatives"] += pc.sum(counts).as_py() or 0
        total["copies"] += pc.sum(table["copies"]).as_py() or 0
        total["too close"] += pc.sum(table["too_close"]).as_py() or 0
    return total
