"""Queries to look at: what the student found and what it missed, with pictures, drawn from the finished run files.

The draw is by the hash of the query's id, spread over the evaluation sets: nobody chose them, and the same run gives
the same ones. Memory: the ids of the drawn queries while the run files stream by, then a row group of some files and
thumbnails of what is shown. Rows are looked for in the artifact's files and not by `MappedTable`, which would copy all
pictures of the corpus to the driver for some dozens of them.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nsmallest
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from stages.contract.context import Artifact
from stages.data.instructions import Instructions
from stages.data.keys import hash64
from stages.evaluation.sets import EvaluationSet, query_blocks, run_file, set_name

IN_NO_KEY = True  # shows what was found

SHOWN, RESULTS, POSITIVES = 10, 5, 2
SIDE = 168  # pixels of a thumbnail's longer side
READERS = 8  # files that are looked through at a time, of thousands


@dataclass
class Drawn:
    """A drawn query: its ranked candidates, and where the first relevant one stands (None: not in the run)."""

    qid: str
    task: str
    ranked: list[tuple[str, float]]
    rank: int | None
    teacher: int | None = None
    row: dict[str, Any] = field(default_factory=dict)


def collect(
    ingest: Artifact, split: str, sets: Sequence[EvaluationSet], runs: Mapping[str, Path]
) -> dict[str, list[dict[str, Any]]]:
    """{"good": …, "bad": …}: at most SHOWN queries each, ready for the page.

    Good: the first result is relevant. Bad: none of the first five is.

    Args:
        runs: for each model the directory and stem of its local run files, `…/student.local`.
    """
    positives = _positives(ingest, split, sets)
    drawn = draw(sets, runs["student"], positives)
    for kind in drawn.values():
        for one in kind:
            one.row = positives[one.task, one.qid]
    if "teacher" in runs:
        _add_teacher([one for kind in drawn.values() for one in kind], runs["teacher"])
    shelf = Shelf(ingest, [one for kind in drawn.values() for one in kind])
    return {kind: [shelf.show(one) for one in found] for kind, found in drawn.items()}


def _positives(ingest: Artifact, split: str, sets: Sequence[EvaluationSet]) -> dict[tuple[str, str], dict[str, Any]]:
    """(set, qid) → the stored query, of evenly spread queries: enough to draw from, whatever the split's size."""
    fewer = [replace(one, asked=min(one.asked, 500)) for one in sets]
    return {
        (set_name(row["dataset"], row["task_id"]), row["qid"]): row
        for block in query_blocks(ingest, split, fewer)
        for row in block.to_pylist()
    }


def draw(
    sets: Sequence[EvaluationSet], run: Path, queries: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, list[Drawn]]:
    """At most SHOWN good and bad ones, set after set in turn, each set's own in the order of their hashes."""
    by_set: dict[str, list[list[Drawn]]] = {"good": [], "bad": []}
    for one in sets:
        found: dict[str, list[Drawn]] = {"good": [], "bad": []}
        for qid, ranked in read_run(run.with_name(run_file(run.name, one.name))):
            row = queries.get((one.name, qid))
            if row is None:
                continue
            rank = first_relevant(ranked, row["positives"])
            kind = "good" if rank == 1 else "bad" if rank is None or rank > RESULTS else None
            if kind:
                drawn = Drawn(qid, one.name, ranked[:RESULTS], rank)
                found[kind] = nsmallest(SHOWN, [*found[kind], drawn], key=lambda item: hash64(item.qid))
        for kind, drawn_list in found.items():
            by_set[kind].append(drawn_list)
    return {
        kind: [one for turn in zip_longest(*lists) for one in turn if one is not None][:SHOWN]
        for kind, lists in by_set.items()
    }


def read_run(path: Path) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(qid, [(did, score), …] best first) of a TREC run, one query at a time."""
    with path.open(encoding="utf-8") as lines:
        fields = (line.split() for line in lines)
        for qid, group in groupby(fields, key=lambda field: field[0]):
            yield unquote(qid), [(unquote(did), float(score)) for _, _, did, _, score, _ in group]


def first_relevant(ranked: Iterable[tuple[str, float]], positives: Iterable[str]) -> int | None:
    """The rank of the first relevant candidate, from 1."""
    wanted = set(positives)
    return next((rank for rank, (did, _) in enumerate(ranked, start=1) if did in wanted), None)


def _add_teacher(drawn: Sequence[Drawn], run: Path) -> None:
    for task in {one.task for one in drawn}:
        wanted = {one.qid: one for one in drawn if one.task == task}
        for qid, ranked in read_run(run.with_name(run_file(run.name, task))):
            if qid in wanted:
                wanted[qid].teacher = first_relevant(ranked, wanted[qid].row["positives"])


def find_rows(artifact: Artifact, prefix: str, key: str, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{id: row} of those rows below `prefix/` whose string column `key` is among `ids`; others are in none."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    find = partial(_find_rows, filesystem=artifact.filesystem, key=key, wanted=wanted)
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(find, artifact.files(prefix) if len(wanted) else ())
        return {row[key]: row for rows in found for row in rows}


def _find_rows(path: str, filesystem: Any, key: str, wanted: pa.Array) -> list[dict[str, Any]]:
    """The wanted rows of a file: all its ids are read, and of the rest the row groups alone that hold one of them."""
    found = []
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=[key])[key]
            kept = pc.indices_nonzero(pc.is_in(names, value_set=wanted))
            if len(kept):
                found += file.read_row_group(group).take(kept).to_pylist()
    return found


class Shelf:
    """What drawn queries and their candidates look like: instruction, text, a small picture."""

    def __init__(self, ingest: Artifact, drawn: Sequence[Drawn]) -> None:
        dids = {did for one in drawn for did in (*one.row["positives"], *(did for did, _ in one.ranked))}
        self.candidates = find_rows(ingest, "candidates", "did", dids)
        shown = {did for one in drawn for did in (*self.positives(one), *(did for did, _ in one.ranked))}
        rows = [*(one.row for one in drawn), *(self.candidates[did] for did in shown)]
        pictures = {row["image_id"] for row in rows if row["image_id"] is not None}
        found = find_rows(ingest, "images", "image_id", pictures)
        self.images = {name: thumbnail(found[name]["bytes"]) for name in pictures}
        self.instructions = Instructions.load(ingest)

    def positives(self, one: Drawn) -> list[str]:
        """The relevant candidates that are shown; those that ingest rejected are not there."""
        return [did for did in one.row["positives"] if did in self.candidates][:POSITIVES]

    def show(self, one: Drawn) -> dict[str, Any]:
        """A drawn query as the page's template takes it."""
        row, relevant = one.row, set(one.row["positives"])
        instruction = self.instructions.choose(row["dataset_id"], row["modality"], row["target_modality"], pick=0)
        return {
            "qid": one.qid,
            "task": one.task,
            "instruction": instruction,
            "query": {"text": row["text"], "image": self.images.get(row["image_id"])},
            "positives": [self.candidate(did) for did in self.positives(one)],
            "more_positives": max(0, len(row["positives"]) - POSITIVES),
            "results": [
                {**self.candidate(did), "score": score, "relevant": did in relevant} for did, score in one.ranked
            ],
            "rank": one.rank,
            "teacher": one.teacher,
        }

    def candidate(self, did: str) -> dict[str, Any]:
        """A candidate's id, text and picture."""
        row = self.candidates[did]
        return {"did": did, "text": row["text"], "image": self.images.get(row["image_id"])}


def thumbnail(data: bytes) -> str:
    """A stored picture as a data URI of some kilobytes."""
    with Image.open(io.BytesIO(data)) as stored:
        picture = stored.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    small = io.BytesIO()
    picture.save(small, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
