"""ingest: any source → validated Parquet.

    source ── read ──► candidates, queries ── survey ──► who came first, what is in which pool
                              │                               │
                              ├─► pictures: each distinct path checked once ─► images/
                              ├─► validate candidates ───────────────────────► candidates/
                              └─► validate queries ──────────────────────────► queries/
    what fails on the way, with a reason and file:line ──────────────────────► rejects/

Every arrow is Ray Data over blocks of rows, so that a corpus of any size passes through; the driver sees only counts.
What must be known about all rows at once is kept as a few bytes for each (`stages.data.ingest.survey`), which takes
the place of shuffles.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stages.contract.context import Context, InputError
from stages.contract.params import Section
from stages.data.sources.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.data import Dataset

    from stages.data.ingest.outcome import Counts
    from stages.data.sources.chunks import SourceFile
    from stages.data.sources.remote import Place

VERSION = 1
MOST_POOLS = 1000
RECORDS = ("pairs", "corpus")
"""Kinds that are files of a user's own."""


class Scenes(Section):
    """How many of the made pictures, and how large they are."""

    train: int = Field(1200, ge=16, description="training scenes")
    val: int = Field(150, ge=8, description="validation scenes")
    test: int = Field(150, ge=8, description="test scenes")
    size: int = Field(64, ge=32, le=512, description="pixels of a picture's side")


class Source(Section):
    """What `data` and `distill.data` have in common."""

    section: ClassVar[str]
    kind: str
    path: str = Field(
        "",
        description="source: a directory, a file of pairs or texts, or s3://bucket/prefix of either; of more than"
        " 20,000 files a plan sees tables and folders, so a picture written over in place needs this stage forced",
    )
    max_reject_share: float = Field(
        0.05, ge=0, le=1, description="a run whose share of rejected rows is larger stops after ingest"
    )
    max_pixels: int = Field(
        1_048_576,
        ge=1024,
        le=100_000_000,
        description="larger pictures are scaled down to this many pixels; those of 100 million or 20 MB are rejected",
    )
    columns: Columns = Columns()

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that need a query."""
        return ("train",)


class Params(Source):
    """The section `data`."""

    section: ClassVar[str] = "data"
    kind: Literal["scenes", "mbeir", "pairs", "corpus"] = Field(
        "scenes",
        description="scenes are drawn on the spot, mbeir is the published layout, pairs are a JSONL or a table, "
        "corpus has no labels and takes a run as far as distill",
    )
    scenes: Scenes = Scenes()

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that need a query: all, where a student is to be evaluated."""
        return ("train",) if self.kind == "corpus" else ("train", "val", "test")


class OwnData(Source):
    """The section `distill.data`, of which the train split teaches."""

    section: ClassVar[str] = "distill.data"
    kind: Literal["", "mbeir", "pairs", "corpus"] = Field(
        "",
        description="what distillation learns from in place of `data`: corpus is a folder or file of texts, pictures "
        "or both, without labels; the others are those of data.kind; empty is `data`",
    )


def unused_modules(params: Source) -> tuple[str, ...]:
    """The formats of other sources than this one."""
    formats = {
        "stages.data.scenes.dataset": ("scenes",),
        "stages.data.sources.pairs": ("pairs", "corpus"),
        "stages.data.sources.records": ("pairs", "corpus"),
        "stages.data.sources.delimited": ("pairs", "corpus"),
        "stages.data.sources.folders": ("pairs", "corpus"),
        "stages.data.ingest.merge": ("pairs",),
        "stages.data.sources.unlabelled": ("corpus",),
    }
    return tuple(module for module, kinds in formats.items() if params.kind not in kinds)


def run(context: Context) -> dict[str, float | dict]:
    """Ingests the source; returns counts and `rejects`. Raises StageError where too many rows are bad."""
    data = context.params.data
    root = _made(context) if data.kind == "scenes" else _root(data)
    counts = _ingest(context, _read_records(context, root) if data.kind in RECORDS else _read_mbeir(context, root))
    context.output.write_json("stats.json", counts.stats())
    context.tracker.metrics(counts.numbers())
    source = str(root) if data.path else f"scenes (seed {context.params.seed})"
    context.tracker.dataset(f"{data.kind} {root.name}", source, context.output.key, "source")
    return {**counts.numbers(), "rejects": counts.rejects()}


@dataclass(frozen=True)
class Reading:
    """A source as read: rows that nobody has validated yet, and what else its format knows."""

    root: "Place"
    candidates: "Dataset"
    queries: "Dataset"
    pools: list[str]
    instructions: "Callable[[Counts], list[dict]]"
    query_files: "list[SourceFile]" = field(default_factory=list)
    """Files whose queries share one pool; where there are none, each row names its own."""


def _read_mbeir(context: Context, root: "Place") -> Reading:
    from stages.data.ingest import flow
    from stages.data.sources import mbeir

    mbeir.require(root, _place(context.params.data))
    instructions = mbeir.instructions(root)
    pool_files, query_files = mbeir.candidate_files(root), mbeir.query_files(root)
    names = {row["dataset_id"]: row["dataset"] for row in instructions}
    candidates, queries = flow.read(root, pool_files, query_files, names, context.output)
    pools = sorted({file.pool for file in pool_files})
    return Reading(root, candidates, queries, pools, lambda _: instructions, query_files)


def _read_records(context: Context, path: "Place") -> Reading:
    from functools import partial

    from stages.data.ingest import flow
    from stages.data.instructions import plain_instructions
    from stages.data.sources import pairs, records, unlabelled

    data, work, files = (
        context.params.data,
        context.output.work / "records",
        _files_of_records(context.params.data, path),
    )
    if data.kind == "pairs":
        found, shape = records.lay_out(path, files, work, of_tables=pairs.COLUMNS), pairs.nested
    else:
        found = records.lay_out(path, files, work, data.columns.names(), setting=_columns(data))
        shape = unlabelled.as_pair
    numbered = flow.number_chunks(found.root, found.sources)
    again = [(len(numbered) + number, chunk) for number, chunk in numbered]  # positions are unique over both
    candidates, queries = (
        flow.read_chunks(found.root, chunks, partial(read, found, shape=shape), context.output)
        for chunks, read in ((numbered, pairs.read_candidates), (again, pairs.read_queries))
    )
    queries = flow.merge_queries(queries, context.output) if data.kind == "pairs" else queries
    flow.warn_of_files(found, (candidates, queries), context.output)
    pools = flow.distinct(candidates, "pool")
    if len(pools) > MOST_POOLS:
        raise InputError(
            f"{_place(data)}={path} names {len(pools)} tasks; a task is a group of many pairs, leave it out"
        )
    return Reading(found.root, candidates, queries, pools, lambda counts: plain_instructions(counts.tasks()))


def _ingest(context: Context, source: Reading) -> "Counts":
    """Validates and writes everything that was read."""
    import pyarrow as pa

    from stages.data.images import ImageLimits
    from stages.data.ingest import flow, wording
    from stages.data.schemas import CANDIDATES, INSTRUCTIONS, QUERIES, REJECTS
    from stages.data.sources import mbeir

    data, output = context.params.data, context.output
    root, candidates, queries, pools = source.root, source.candidates, source.queries, source.pools
    read = f"read {queries.count()} query rows and {candidates.count()} rows of {len(pools)} pools"
    flow.say(output, f"{read} from {data.path or root}")

    numbers = flow.take_numbers(candidates, queries, pools)
    images = flow.write_images(output, root, (candidates, queries), numbers, ImageLimits(data.max_pixels))
    flow.say(output, f"checked {numbers.path_count} pictures: {images.count} kept, {images.rejects.num_rows} rejected")
    for line in wording.skipped_lines(images.rejects):
        flow.say(output, line)

    known = flow.survey_candidates(numbers, images, pools, mbeir.implied_unions(pools))
    valid_candidates = flow.validate_candidates(candidates, known, images)
    own = flow.own_pools(root, source.query_files, known, output)
    valid_queries = flow.validate_queries(queries, numbers, known, images, own)
    rejects = flow.rejects(valid_candidates, valid_queries, images)
    counts = flow.count(valid_candidates, valid_queries, images, known)
    counts = replace(counts, instructions=source.instructions(counts))
    flow.say(output, wording.kept_line(counts))
    wording.refuse(counts, data, rejects, output.work)
    if line := wording.bare_line(counts.stats()["queries"]):
        flow.say(output, f"warning: {line}")

    flow.write(output, "candidates", flow.keep(valid_candidates, CANDIDATES), CANDIDATES)
    flow.write(output, "queries", flow.keep(valid_queries, QUERIES), QUERIES)
    flow.write(output, "rejects", rejects, REJECTS)
    flow.write_table(output, "instructions", pa.Table.from_pylist(counts.instructions, INSTRUCTIONS))
    return counts


def _made(context: Context) -> Path:
    """Draws the scenes as an M-BEIR directory; from there on they are read like any other."""
    from functools import partial

    from stages.data.ingest import flow
    from stages.data.scenes import dataset

    place = context.output.work / "scenes"
    each = partial(flow.each, options=flow.beside([place], context.output))
    return dataset.make(place, context.params.data.scenes, context.params.seed, each)


def check(params: Source) -> None:
    """Raises InputError where the source cannot be read; cheap enough for every plan."""
    if params.kind == "scenes":
        return
    if params.kind in RECORDS:
        from stages.data.sources import delimited

        for file in _files_of_records(params, _root(params)):
            if file.suffix.lower() in delimited.TABLES:
                _check_header(params, delimited.read_header(file), file)
    else:
        from stages.data.sources import mbeir

        mbeir.require(_root(params), _place(params))
        mbeir.instructions(_root(params))


def _check_header(params: Source, header: list[str], file: "Place") -> None:
    """Raises InputError where a table has no columns to read."""
    from stages.data.sources import columns, pairs

    if params.kind == "pairs":
        pairs.check_columns(header, str(file))
    else:
        names = columns.beside_pictures(file.name, params.columns.names())
        columns.check_columns(header, names, str(file), _columns(params))


def fingerprint(params: Source) -> str | None:
    """A digest of (path, size, time of change or ETag) of the source's files; None for scenes, which have none.

    Contents are not read, and of many pictures only their folders are looked at (`sources.changes`): a plan answers in
    seconds. Raises InputError where the directory is not there.
    """
    if params.kind == "scenes":
        return None
    import hashlib

    from stages.data.sources import changes, remote

    root = _root(params)
    if params.kind in RECORDS:
        from stages.data.sources import records

        return records.fingerprint(root, texts=params.kind == "corpus")
    if isinstance(root, remote.RemotePath):
        return hashlib.sha256(repr(changes.of_bucket(root)).encode()).hexdigest()[:16]
    if not root.is_dir():
        raise InputError(f"{_place(params)}={root} is not a directory: give the one that holds query/ and cand_pool/")
    return hashlib.sha256(repr(changes.of_directory(root)).encode()).hexdigest()[:16]


def _root(params: Source) -> "Place":
    from stages.data.sources import remote

    return remote.source(params.path, _place(params))


def _place(params: Source) -> str:
    """The setting that tells where the source is."""
    return f"{params.section}.path"


def _columns(params: Source) -> str:
    """The setting that tells of columns."""
    return f"{params.section}.columns"


def _files_of_records(params: Source, path: "Place") -> "list[Place]":
    """See `records.find`."""
    from stages.data.sources import records

    return records.find(path, _place(params), bare=params.kind == "corpus")
