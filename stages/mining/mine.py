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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.contract.context import Context, StageError
from stages.contract.params import Section

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1024  # queries that pass the candidates together
QUERY_COLUMNS = ["qid", "dataset_id", "modality", "target_modality", "text", "image_id", "positives"]


class Mine(Section):
    """The section `train.mine`."""

    per_query: int = Field(0, ge=0, description="hard negatives mined for each train query; 0 mines none")
    margin: float = Field(
        0.95, gt=0, le=1, description="a negative's cosine is below this share of the query's farthest positive's"
    )


@dataclass(frozen=True)
class Mined:
    """The mined table before it is committed, opened like an artifact; picklable."""

    stage: str
    key: str
    paths: tuple[str, ...]
    filesystem: Any
    manifest: dict[str, Any] = field(default_factory=dict)

    def files(self, prefix: str) -> list[str]:
        """Paths of the table `negatives/`."""
        return list(self.paths) if prefix == "negatives" else []


def mine(context: Context, model: Path) -> Mined:
    """Mines, writes what `train` keeps of it, and returns the table.

    Raises:
        StageError: there is nothing to mine from, or not one query got a negative.
    """
    from pyarrow.fs import LocalFileSystem

    from stages.data.keys import hash64
    from stages.mining.audit import examples_of

    # A student that was distilled anew lies at another place, and what another one mined is not this one's.
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


def _once(path: Path, write: Any) -> Path:
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
    import ray.data

    from stages.distributed.embedding import embed_rows

    ingest = context.inputs["ingest"]
    stored = ray.data.read_parquet(ingest.files("candidates"), filesystem=ingest.filesystem)
    columns = ["did", "modality", "text", "image_id", "content_id", "pools"]
    pooled = stored.select_columns(columns).map_batches(keep_training, batch_format="pyarrow", zero_copy_batch=True)
    embedded = embed_rows(context, pooled, model=model, side="candidate")
    embedded.map_batches(with_hashes, batch_format="pyarrow").write_parquet(str(path))
    if not _files(path):
        raise StageError("no candidate is in the pool union_train, so there is nothing to mine; set per_query=0")


def keep_training(table: "pa.Table") -> "pa.Table":
    """The candidates of the pool that training may use."""
    import pyarrow as pa

    wanted = [_trains(pools) for pools in table["pools"].to_pylist()]
    return table.filter(pa.array(wanted, pa.bool_())).drop_columns(["pools"])


def _trains(pools: list[str]) -> bool:
    return "union_train" in pools or not pools


def with_hashes(table: "pa.Table") -> "pa.Table":
    """The columns that `stages.mining.negatives` reads."""
    import pyarrow as pa

    from stages.data.keys import hash_ids
    from stages.mining.negatives import COLUMNS

    hashed = {
        "did_hash": hash_ids(table["did"].to_pylist()),
        "content_hash": hash_ids(table["content_id"].to_pylist()),
    }
    for name, values in hashed.items():
        table = table.append_column(name, pa.array(values, pa.uint64()))
    return table.select(COLUMNS)


def _write_negatives(context: Context, model: Path, candidates: Path, path: Path) -> None:
    """The train queries past the candidates: embedded by actors, mined by tasks that each stream the whole pool."""
    import ray.data

    from stages.distributed.embedding import embed_rows

    ingest = context.inputs["ingest"]
    stored = ray.data.read_parquet(ingest.files("queries"), filesystem=ingest.filesystem)
    train = stored.map_batches(_train_queries, fn_kwargs={"columns": QUERY_COLUMNS}, batch_format="pyarrow")
    rule = context.params.train.mine
    embedded = embed_rows(context, train, model=model, side="query")
    arguments = {"files": tuple(_files(candidates)), "per_query": rule.per_query, "margin": rule.margin}
    mined = embedded.map_batches(_mine, fn_kwargs=arguments, batch_size=BLOCK, batch_format="pyarrow")
    mined.write_parquet(str(path))


def _train_queries(table: "pa.Table", columns: list[str]) -> "pa.Table":
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["split"], "train")).select(columns)


def _mine(table: "pa.Table", files: tuple[str, ...], per_query: int, margin: float) -> "pa.Table":
    from pyarrow.fs import LocalFileSystem

    from stages.mining.negatives import COLUMNS, Rule, mine_block
    from stages.search.exact import ExactIndex

    index = ExactIndex(files, LocalFileSystem())
    return mine_block(table, lambda: index.batches(COLUMNS), Rule(per_query, margin))


def _summarise(mined: Mined) -> dict[str, float]:
    """Sums over the audit table, one file at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

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
