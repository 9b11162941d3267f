"""ingest: any source → validated Parquet.

    source ── read ──► candidates, queries ── survey ──► who came first, what is in which pool
                              │                               │
                              ├─► pictures: each distinct path checked once ─► images/
                              ├─► judge candidates ──────────────────────────► candidates/
                              └─► judge queries ─────────────────────────────► queries/
    what fails on the way, with a reason and file:line ──────────────────────► rejects/

Every arrow is Ray Data over blocks of rows, so that a corpus of any size passes through; the driver sees only counts.
What must be known about all rows at once is kept as a few bytes for each (`stages.data.ingest.survey`), which takes
the place of shuffles.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.contract.context import Context, InputError
from stages.contract.params import Section, knob

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.data import Dataset

    from stages.data.ingest.outcome import Report
    from stages.data.sources.mbeir import Source
    from stages.data.sources.remote import Place

VERSION = 1
MOST_POOLS = 1000


class Scenes(Section):
    """How many of the made pictures, and how hard they are."""

    train: int = Field(1200, ge=16, description="training scenes")
    val: int = Field(150, ge=8, description="validation scenes")
    test: int = Field(150, ge=8, description="test scenes")
    size: int = Field(64, ge=32, le=512, description="pixels of a picture's side")
    things: tuple[Annotated[int, Field(ge=1, le=4)], ...] = Field(
        (1, 1, 2, 2, 2, 3), min_length=1, description="how many things a scene has: one of these, each as likely"
    )
    siblings: int = Field(1, ge=1, le=24, description="scenes in a row of the same parts, combined differently")
    edits: int = Field(1, ge=1, le=4, description="steps of the change that is asked for")
    tasks: tuple[Literal[0, 1, 2, 3, 4, 6, 7, 8], ...] = Field(
        (0, 1, 2, 3, 4, 6, 7, 8), min_length=1, description="M-BEIR's tasks that are asked"
    )


class Params(Section):
    """The section `data`."""

    kind: Literal["scenes", "mbeir", "pairs"] = Field(
        "scenes", description="scenes are drawn on the spot, mbeir is the published layout, pairs are a JSONL file"
    )
    path: str = Field("", description="source: a directory, a file of pairs, or s3://bucket/prefix of either")
    max_reject_share: float = Field(0.05, ge=0, le=1)
    max_pixels: int = Field(1_048_576, ge=1024, description="larger pictures are scaled down to this many pixels")
    refuse_pixels: int = Field(100_000_000, ge=1024, description="larger pictures are rejected before decoding")
    max_image_bytes: int = Field(20_000_000, ge=1024)
    scenes: Scenes = Scenes()
    rows_per_task: int = knob(2000, ge=1, description="pictures that one Ray task checks, at most")


def run(context: Context) -> dict[str, float | dict]:
    """Ingests the source; returns counts and `rejects`. Raises StageError where too many rows are bad."""
    data = context.params.data
    root = _made(context) if data.kind == "scenes" else _root(data)
    report = _ingest(context, _read_pairs(context, root) if data.kind == "pairs" else _read_mbeir(root))
    context.output.write_json("stats.json", report.stats())
    context.tracker.metrics(report.numbers())
    source = str(root) if data.path else f"scenes (seed {context.params.seed})"
    context.tracker.dataset(f"{data.kind} {root.name}", source, context.output.key, "source")
    return {**report.numbers(), "rejects": report.rejects()}


@dataclass(frozen=True)
class Reading:
    """A source as read: rows that nobody has judged yet, and what else its format tells."""

    root: "Place"
    candidates: "Dataset"
    queries: "Dataset"
    pools: list[str]
    instructions: "Callable[[Report], list[dict]]"
    query_files: "list[Source]" = field(default_factory=list)
    """Files whose queries share one pool; where there are none, each row names its own."""


def _read_mbeir(root: "Place") -> Reading:
    from stages.data.ingest import flow
    from stages.data.sources import mbeir

    mbeir.require(root)
    instructions = mbeir.instructions(root)
    pool_files, query_files = mbeir.candidate_sources(root), mbeir.query_sources(root)
    names = {row["dataset_id"]: row["dataset"] for row in instructions}
    candidates, queries = flow.read(root, pool_files, query_files, names)
    pools = sorted({source.pool for source in pool_files})
    return Reading(root, candidates, queries, pools, lambda _: instructions, query_files)


def _read_pairs(context: Context, path: "Place") -> Reading:
    from functools import partial

    from stages.data.ingest import flow
    from stages.data.sources import pairs, records

    found = records.lay_out(path, records.find(path, "data.path", pictures=False), context.output.work / "records")
    chunks = flow.cut(found.root, found.sources)
    queries = flow.read_chunks(chunks, partial(pairs.read_queries, found))
    candidates = flow.read_chunks(chunks, partial(pairs.read_candidates, found))
    pools = flow.distinct(candidates, "pool")
    if len(pools) > MOST_POOLS:
        raise InputError(f"data.path={path} names {len(pools)} tasks; a task is a group of many pairs, leave it out")
    return Reading(found.root, candidates, queries, pools, lambda report: pairs.instructions(report.tasks()))


def _ingest(context: Context, source: Reading) -> "Report":
    """Judges and writes everything that was read."""
    import pyarrow as pa

    from stages.data.images import Limits
    from stages.data.ingest import flow
    from stages.data.schemas import CANDIDATES, INSTRUCTIONS, QUERIES, REJECTS
    from stages.data.sources import mbeir

    data, output = context.params.data, context.output
    root, candidates, queries, pools = source.root, source.candidates, source.queries, source.pools
    flow.say(f"read {queries.count()} query rows and {candidates.count()} rows of {len(pools)} pools from {root}")

    numbers = flow.take_numbers(candidates, queries, pools)
    limits = Limits(data.max_pixels, data.refuse_pixels, data.max_image_bytes)
    images = flow.write_images(output, root, (candidates, queries), numbers, limits, data.rows_per_task)
    flow.say(f"checked {numbers.path_count} pictures: {images.count} kept, {images.rejects.num_rows} rejected")

    known = flow.settle(numbers, images, pools, mbeir.implied_unions(pools))
    judged_candidates = flow.judge_candidates(candidates, known, images)
    own = flow.own_pools(root, source.query_files, known)
    judged_queries = flow.judge_queries(queries, numbers, known, images, own)
    rejects = flow.rejects(judged_candidates, judged_queries, images)
    report = flow.report(judged_candidates, judged_queries, images, known)
    flow.say(report.line())
    report.refuse(data.max_reject_share, rejects, output.work)

    flow.write(output, "candidates", flow.keep(judged_candidates, CANDIDATES), CANDIDATES)
    flow.write(output, "queries", flow.keep(judged_queries, QUERIES), QUERIES)
    flow.write(output, "rejects", rejects, REJECTS)
    flow.write_table(output, "instructions", pa.Table.from_pylist(source.instructions(report), INSTRUCTIONS))
    return report


def _made(context: Context) -> Path:
    """Draws the scenes as an M-BEIR directory; from there on they are read like any other."""
    from stages.data.ingest import flow
    from stages.data.scenes import dataset as scenes

    return scenes.make(context.output.work / "scenes", context.params.data.scenes, context.params.seed, flow.each)


def check(params: Params) -> None:
    """Raises InputError where the source cannot be read; cheap enough for every plan."""
    if params.kind == "scenes":
        return
    if params.kind == "pairs":
        from stages.data.sources import records

        records.find(_root(params), "data.path", pictures=False)
    else:
        from stages.data.sources import mbeir

        mbeir.require(_root(params))
        mbeir.instructions(_root(params))
    if params.max_pixels > params.refuse_pixels:
        raise InputError("data.max_pixels passes data.refuse_pixels: a picture is refused before it is scaled down")


def fingerprint(params: Params) -> str | None:
    """A digest of (path, size, time of change or ETag) of all files of the source; None for scenes, which have none.

    Contents are not read: a plan answers in under a second. Raises InputError where the directory is not there.
    """
    if params.kind == "scenes":
        return None
    import hashlib

    from stages.data.sources import remote

    root = _root(params)
    if params.kind == "pairs":
        from stages.data.sources import records

        return records.fingerprint(root)
    if isinstance(root, remote.RemotePath):
        return hashlib.sha256(repr(sorted(remote.listing(root))).encode()).hexdigest()[:16]
    if not root.is_dir():
        raise InputError(f"data.path={root} is not a directory: give the one that holds query/ and cand_pool/")
    return hashlib.sha256(repr(sorted(_files(root))).encode()).hexdigest()[:16]


def _root(params: Params) -> "Place":
    from stages.data.sources import remote

    return remote.source(params.path)


def _files(root: Path) -> list[tuple[str, int, int]]:
    """(path below the root, bytes, nanoseconds of the last change) of all files; linked folders are not entered."""
    import os

    found, waiting = [], [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=os.path.exists(entry.path))
                    found.append((entry.path.removeprefix(str(root)), status.st_size, status.st_mtime_ns))
    return found
