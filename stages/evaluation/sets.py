"""Evaluation sets: which queries are asked, and of which pool.

A set is one task of one dataset, as M-BEIR scores them (`grocery_task3`). Choosing the queries is a pure function of
the stored order, so teacher, student and a later run ask the same ones.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from stages.contract.context import Artifact, StageError
from stages.data.keys import hash64

BLOCK = 1024  # queries that travel and are ranked together
ASKED = ("qid", "dataset", "dataset_id", "task_id", "modality", "target_modality", "text", "image_id", "positives")
PLAIN_NAME = re.compile(r"\w[\w.-]{0,70}")
_READ = 8192


@dataclass(frozen=True)
class EvaluationSet:
    """One task of one dataset in one split."""

    dataset: str
    task_id: int
    query_modality: str
    target_modality: str
    pool: str | None
    """The local pool; None where the source has none, then all indexed candidates stand in for it."""
    stored: int
    """Queries of the set in the split."""
    asked: int
    """Queries that are evaluated."""
    missed: int = 0
    """Queries that were rejected, by themselves or with their picture or positives; they count as not found."""

    @property
    def name(self) -> str:
        """The key of the set in every output."""
        return set_name(self.dataset, self.task_id)

    @property
    def label(self) -> str:
        """What a person reads: `image+text→text`."""
        return f"{_short(self.query_modality)}→{_short(self.target_modality)}"


def set_name(dataset: str, task_id: int) -> str:
    """`{dataset}_task{task_id}`."""
    return f"{dataset}_task{task_id}"


def run_file(run: str, name: str) -> str:
    """The name of a set's TREC run: as the set is called, if any file may be called so, else with a digest for it."""
    if not PLAIN_NAME.fullmatch(name):
        name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{hash64(name):016x}"
    return f"{run}.{name}.trec"


def _short(modality: str) -> str:
    return modality.replace(",", "+")


def find_sets(ingest: Artifact, split: str, limit: int) -> list[EvaluationSet]:
    """The sets of a split in order of dataset and task; at most `limit` queries of each are asked (0: all).

    Where not all are asked, as large a part of the rejected ones counts.

    Raises:
        StageError: the split has no query, or one set names two pools.
    """
    columns = ["dataset", "task_id", "modality", "target_modality", "pool"]
    found: dict[tuple[str, int], EvaluationSet] = {}  # by what names a set everywhere; ids of a dataset may be shared
    for row in _rows(ingest, split, columns):
        key = (row["dataset"], row["task_id"])
        known = found.get(key)
        if known is None:
            modalities = (row["modality"], row["target_modality"])
            known = EvaluationSet(row["dataset"], row["task_id"], *modalities, row["pool"], 0, 0)
        elif known.pool != row["pool"]:
            raise StageError(f"{known.name}: queries of split {split} name two pools, {known.pool} and {row['pool']}")
        found[key] = replace(known, stored=known.stored + 1)
    if not found:
        raise StageError(f"no query of split {split} was ingested; give the source a {split} split")
    lost = rejected_queries(ingest, split)
    return [limited(one, limit, lost.get(one.name, 0)) for _, one in sorted(found.items())]


def limited(one: EvaluationSet, limit: int, lost: int) -> EvaluationSet:
    """The set with at most `limit` of its queries asked (0: all), and as large a part of its `lost` ones missed."""
    asked = min(limit or one.stored, one.stored)
    return replace(one, asked=asked, missed=round(lost * asked / one.stored))


def rejected_queries(ingest: Artifact, split: str) -> dict[str, int]:
    """{set: queries of the split that ingest rejected}."""
    if "stats.json" not in {entry["path"] for entry in ingest.manifest.get("files", ())}:
        return {}
    return ingest.read_json("stats.json")["queries"].get("rejected_by_task", {}).get(split, {})


def rejected_sets(ingest: Artifact, split: str, sets: Sequence[EvaluationSet]) -> dict[str, int]:
    """{set: its queries} of the sets that nothing is left of to ask: `sets` are those that there are."""
    asked = {one.name for one in sets}
    return {name: count for name, count in rejected_queries(ingest, split).items() if name not in asked}


def query_blocks(ingest: Artifact, split: str, sets: Sequence[EvaluationSet]) -> Iterator[pa.Table]:
    """The asked queries, evenly spaced within their set, as tables of BLOCK rows with the columns ASKED."""
    held: list[pa.RecordBatch] = []
    for batch in pick(_batches(ingest, split, list(ASKED)), sets):
        held.append(batch)
        while sum(part.num_rows for part in held) >= BLOCK:
            table = pa.Table.from_batches(held).combine_chunks()
            yield table.slice(0, BLOCK)
            held = table.slice(BLOCK).to_batches()
    if any(part.num_rows for part in held):
        yield pa.Table.from_batches(held).combine_chunks()


def pick(batches: Iterable[pa.RecordBatch], sets: Sequence[EvaluationSet]) -> Iterator[pa.RecordBatch]:
    """The asked queries among the stored ones, evenly spaced within their set."""
    chosen = {one.name: one for one in sets}
    seen = dict.fromkeys(chosen, 0)
    for batch in batches:
        names = map(set_name, batch["dataset"].to_pylist(), batch["task_id"].to_pylist())
        picks = []
        for row, name in enumerate(names):
            if name in chosen:
                if is_asked(seen[name], chosen[name].stored, chosen[name].asked):
                    picks.append(row)
                seen[name] += 1
        yield batch.take(pa.array(picks, pa.int64()))


def is_asked(position: int, stored: int, asked: int) -> bool:
    """Whether the query at `position` is one of `asked` that are evenly spaced over `stored`."""
    return (position + 1) * asked // stored > position * asked // stored


def spaced_rows(tables: Sequence[pa.Table], count: int) -> list[dict[str, Any]]:
    """At most `count` rows, evenly spaced over all tables; no other row becomes Python objects."""
    stored = sum(table.num_rows for table in tables)
    rows: list[dict[str, Any]] = []
    start = 0
    for table in tables:
        picks = [row for row in range(table.num_rows) if is_asked(start + row, stored, min(count, stored))]
        rows += table.take(pa.array(picks, pa.int64())).to_pylist()
        start += table.num_rows
    return rows


def pools_of(ingest: Artifact, split: str) -> set[str]:
    """Names of the pools that the queries of `split` are asked of, and the union pool of the split."""
    return {one.pool for one in find_sets(ingest, split, 0) if one.pool is not None} | {union_pool(split)}


def union_pool(split: str) -> str:
    """The pool that joins all candidates of a split, by M-BEIR's file name."""
    return f"union_{split}"


def _batches(ingest: Artifact, split: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    stored = pyarrow.dataset.dataset(ingest.files("queries"), filesystem=ingest.filesystem, format="parquet")
    yield from stored.to_batches(columns=columns, filter=pc.field("split") == split, batch_size=_READ)


def _rows(ingest: Artifact, split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in _batches(ingest, split, columns):
        yield from batch.to_pylist()
