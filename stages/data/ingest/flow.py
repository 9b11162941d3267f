"""The Ray Data side of ingest: how tables flow from step to step. What each step decides is in pure modules beside it.

Datasets pass between steps as blocks in Ray's object store, which spills to disk when full; the driver holds only
references and counts. Rows keep the order of the source, so that the same source gives the same artifact.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import ray
import ray.data

from stages.contract.context import Attempt, StageError
from stages.contract.placement import beside_driver
from stages.data.images import ImageLimits
from stages.data.ingest import merge, pictures, survey, validate
from stages.data.ingest.outcome import CANDIDATE_COLUMNS, QUERY_COLUMNS, Counts
from stages.data.keys import hash_ids, locate
from stages.data.schemas import IMAGES, RAW_QUERIES
from stages.data.sources import mbeir_rows
from stages.data.sources.chunks import CHUNK_BYTES, FileChunk, SourceFile, file_chunks
from stages.data.sources.folders import list_pictures
from stages.data.sources.records import Records
from stages.data.sources.remote import Place

TASKS_PER_CPU = 4
SMALLEST_CHUNK = 2**18
SMALLEST_BATCH, LARGEST_BATCH = 32, 2000  # pictures that one task checks


@dataclass(frozen=True)
class Numbers:
    """What all rows left behind; references to arrays in the object store."""

    candidates: list[ray.ObjectRef]
    """Tables `survey.NUMBERS`, one for each block of candidate rows."""
    queries: ray.ObjectRef
    """`Firsts` of the queries."""
    paths: ray.ObjectRef
    """`Firsts` of the image paths."""
    path_count: int


@dataclass(frozen=True)
class Images:
    """What became of the pictures."""

    verdicts: ray.ObjectRef
    """`ImageVerdicts`"""
    count: int
    rejects: pa.Table


def say(output: Attempt, line: str) -> None:
    """One line of progress of the stage that writes to `output`: ingest, the one of `distill.data`, or an index."""
    print(f"{output.stage}: {line}", file=sys.stderr, flush=True)


def beside(places: Iterable[Place], output: Attempt) -> dict[str, Any]:
    """Ray's options of tasks that read at `places`: those on a disk are read on the driver's node, as it sees them.

    Nodes that share a store in a directory are taken to share others too; a bucket may be all that they share.

    Raises:
        StageError: the driver's node has no CPU for tasks.
    """
    on_disk = next((place for place in places if isinstance(place, Path)), None)
    if on_disk is None or output.filesystem.type_name == "local":
        return {}
    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes()):
        raise StageError(
            f"{on_disk} lies on the driver's node, which gives Ray no CPU to read it by; copy it to a bucket, or start"
            " that node with CPUs (ray start --num-cpus)"
        )
    return {"label_selector": {"ray.io/node-id": here}}


def each(function: Callable[[Any], Any], items: list[Any], options: dict[str, Any]) -> Iterator[Any]:
    """`map` by Ray tasks with these options: results in the order of the items."""
    remote = ray.remote(function).options(**options)
    waiting = [remote.remote(item) for item in items]
    while waiting:
        yield ray.get(waiting.pop(0))


def read(
    root: Place, candidates: list[SourceFile], queries: list[SourceFile], datasets: dict[int, str], output: Attempt
) -> tuple[ray.data.Dataset, ray.data.Dataset]:
    """(candidate rows, query rows) as read, in `RAW_CANDIDATES` and `RAW_QUERIES`; positions are unique over both."""
    numbered = number_chunks(root, [*candidates, *queries])
    split = sum(chunk.source.pool is not None for _, chunk in numbered)

    def reader(number: int, chunk: FileChunk) -> pa.Table:
        return mbeir_rows.read_chunk(root, number, chunk, datasets)

    return tuple(read_chunks(root, some, reader, output) for some in (numbered[:split], numbered[split:]))


def number_chunks(root: Place, sources: Sequence[SourceFile]) -> list[tuple[int, FileChunk]]:
    """The numbered chunks of files, small enough that every core gets a few."""
    total = sum(source.below(root).stat().st_size for source in sources)
    size = min(CHUNK_BYTES, max(SMALLEST_CHUNK, total // (TASKS_PER_CPU * _cpus())))
    return list(enumerate(chunk for source in sources for chunk in file_chunks(root, source, size)))


def read_chunks(
    root: Place, numbered: list[tuple[int, FileChunk]], reader: Callable[[int, FileChunk], pa.Table], output: Attempt
) -> ray.data.Dataset:
    """The rows of all chunks, in their order, each read by a task of its own."""

    def read_places(table: pa.Table) -> Iterator[pa.Table]:
        for place in table["id"].to_pylist():
            yield reader(*numbered[place])

    places = ray.data.range(len(numbered), override_num_blocks=max(1, len(numbered)))
    places.context.execution_options.preserve_order = True  # of this dataset and of all that is made from it
    options = beside({chunk.source.below(root) for _, chunk in numbered}, output)
    return _map(places, read_places, **options).materialize()


def distinct(rows: ray.data.Dataset, column: str) -> list[str]:
    """The values of a column of strings, sorted."""

    def values(table: pa.Table) -> pa.Table:
        return pa.table({column: pc.unique(table[column])})

    tables = ray.get(_map(rows, values).to_arrow_refs())
    return sorted({value for table in tables if table.num_rows for value in table[column].to_pylist() if value})


def warn_of_files(found: Records, rows: Sequence[ray.data.Dataset], output: Attempt) -> None:
    """Says which files of a user's were not read: beside a folder's pictures, or pictures beside records."""
    for note in found.notes:
        say(output, note)
    unnamed = 0 if found.listed else count_unnamed(found.root, rows)
    if unnamed:
        say(output, f"warning: pictures beside the records that no row names: {unnamed}")


def count_unnamed(root: Place, rows: Sequence[ray.data.Dataset]) -> int:
    """How many files called like pictures below `root` no row names: a list may call its column otherwise."""

    def named(table: pa.Table) -> pa.Table:
        paths = pc.unique(table["image_path"]).drop_null().to_pylist()
        return pa.table({"path": hash_ids(map(os.path.normpath, paths))})

    tables = [table for dataset in rows for table in ray.get(_map(dataset, named).to_arrow_refs()) if table.num_rows]
    found = np.unique(np.concatenate([np.empty(0, np.uint64), *(table["path"].to_numpy() for table in tables)]))
    return int((locate(hash_ids(list_pictures(root)), found) < 0).sum())


def merge_queries(queries: ray.data.Dataset, output: Attempt) -> ray.data.Dataset:
    """The query rows, those that ask the same of a task merged into the first of them; says how many there were."""

    @ray.remote
    def repeated(*tables: pa.Table) -> np.ndarray:
        return merge.repeated(_concatenated(tables, merge.KEYS))

    @ray.remote(num_returns=2)
    def gathered(*tables: pa.Table) -> tuple[merge.Merged, tuple[int, int]]:
        found = merge.Merged.of(_concatenated(tables, merge.PARTS))
        return found, (found.rows, len(found.keys))

    def parts(table: pa.Table) -> pa.Table:
        return merge.parts(table, ray.get(several))

    def merged(table: pa.Table) -> pa.Table:
        return merge.merge(table, ray.get(known))

    several = repeated.remote(*_map(queries, merge.keys).to_arrow_refs())
    known, counts = gathered.remote(*_map(queries, parts).to_arrow_refs())
    rows, kept = ray.get(counts)
    if not rows:
        return queries
    line = f"{rows} rows ask what another row of their task asks: merged into {kept} queries with all their candidates"
    say(output, line)
    return _map(queries, merged).materialize()


def take_numbers(candidates: ray.data.Dataset, queries: ray.data.Dataset, pools: list[str]) -> Numbers:
    """Has every row leave its numbers behind, and sorts out who came first."""
    from_candidates = _map(candidates, survey.candidate_numbers, pools).to_arrow_refs()
    from_queries = _map(queries, survey.query_numbers).to_arrow_refs()

    @ray.remote(num_returns=3)
    def firsts(split: int, *tables: pa.Table) -> tuple[survey.Firsts, survey.Firsts, int]:
        every = _concatenated(tables, survey.NUMBERS)
        asked = _concatenated(tables[split:], survey.NUMBERS)
        paths = survey.Firsts.of(every["path"].to_numpy(), every["position"].to_numpy())
        return survey.Firsts.of(asked["key"].to_numpy(), asked["position"].to_numpy()), paths, len(paths.keys)

    queries_ref, paths_ref, count = firsts.remote(len(from_candidates), *from_candidates, *from_queries)
    return Numbers(from_candidates, queries_ref, paths_ref, ray.get(count))


def write_images(
    output: Attempt, root: Place, rows: tuple[ray.data.Dataset, ...], numbers: Numbers, limits: ImageLimits
) -> Images:
    """Checks each distinct picture and writes the good ones to `images/`.

    Pictures that a killed run has written already are taken over; see `stages.data.ingest.pictures`.
    """
    ledger = beside_driver(pictures.Ledger)
    files = [f"{output.base}/images/{name}" for name in output.adopt("images")]
    done = ledger.take_over.remote(files, output.filesystem)
    checked = len(ray.get(done))
    if checked:
        say(output, f"{checked} of {numbers.path_count} pictures were checked before")
    left = numbers.path_count - checked
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, math.ceil(left / (TASKS_PER_CPU * _cpus()))))

    def new_paths(table: pa.Table) -> pa.Table:
        return pictures.new_paths(table, *ray.get([numbers.paths, done]))

    def check(table: pa.Table) -> pa.Table:
        def record(*found: Any) -> list[bool]:
            return ray.get(ledger.record.remote(*found))

        return pa.table({"written": [pictures.write_pictures(table, root, limits, record, output)]})

    paths = [_map(dataset, new_paths) for dataset in rows]
    paths = (paths[0].union(*paths[1:]) if paths[1:] else paths[0]).repartition(target_num_rows_per_block=batch)
    _map(paths, check, **beside([root], output)).materialize()
    if not output.filesystem.get_file_info(pyarrow.fs.FileSelector(f"{output.base}/images", allow_not_found=True)):
        write_table(output, "images", IMAGES.empty_table())
    verdicts, count, rejects = ray.get(ledger.conclude.remote())
    return Images(ray.put(verdicts), count, rejects)


def survey_candidates(
    numbers: Numbers, images: Images, pools: list[str], unions: dict[str, set[str]]
) -> ray.ObjectRef:
    """The `survey.Candidates` of the corpus: what exists, what survives its image, and which pools hold it."""

    @ray.remote
    def known(verdicts: survey.ImageVerdicts, *tables: pa.Table) -> survey.Candidates:
        bad = verdicts.paths[verdicts.reasons != 0]
        return survey.survey_candidates(_concatenated(tables, survey.NUMBERS), pools, unions, bad)

    return known.remote(images.verdicts, *numbers.candidates)


def validate_candidates(
    rows: ray.data.Dataset, known: ray.ObjectRef, images: Images, schema: pa.Schema = validate.VALIDATED_CANDIDATES
) -> ray.data.Dataset:
    """The candidate rows in `schema`."""

    def validated(table: pa.Table) -> pa.Table:
        return validate.validate_candidates(table, ray.get(known), ray.get(images.verdicts), schema)

    return _map(rows, validated).materialize()


def validate_queries(
    rows: ray.data.Dataset, numbers: Numbers, known: ray.ObjectRef, images: Images, pools: dict[str, str]
) -> ray.data.Dataset:
    """The query rows in `VALIDATED_QUERIES`; `pools` maps a query file to its local pool."""

    def validated(table: pa.Table) -> pa.Table:
        shared = ray.get([numbers.queries, known, images.verdicts])
        return validate.validate_queries(table, *shared, pools)

    return _map(rows, validated).materialize()


def own_pools(root: Place, sources: list[SourceFile], known: ray.ObjectRef, output: Attempt) -> dict[str, str]:
    """The local pool of each val and test query file: the first of its `pools` that holds positives of its start.

    A data set may publish local pools for test alone; then its val queries are asked of the union pool of val.
    """

    @ray.remote
    def choose(candidates: survey.Candidates) -> dict[str, str]:
        return {source.path: validate.own_pool(_start(root, source), source, candidates) for source in asked}

    asked = [source for source in sources if source.pools]
    return ray.get(choose.options(**beside([root], output)).remote(known))


def keep(validated: ray.data.Dataset, schema: pa.Schema) -> ray.data.Dataset:
    """The rows that are kept."""
    return _map(validated, validate.kept, schema)


def rejects(candidates: ray.data.Dataset, queries: ray.data.Dataset, images: Images) -> ray.data.Dataset:
    """The rows that are not, candidates first, then queries, then pictures."""
    rows = [_map(candidates, validate.rejected, "candidate", "did"), _map(queries, validate.rejected, "query", "qid")]
    return rows[0].union(rows[1], ray.data.from_arrow(images.rejects))


def write(output: Attempt, name: str, rows: ray.data.Dataset, schema: pa.Schema) -> None:
    """Writes rows to `name/` of the artifact; a dataset without rows gives one file that holds the schema."""
    path = f"{output.base}/{name}"
    rows.write_parquet(path, filesystem=output.filesystem)
    found = output.filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    if not any(entry.is_file for entry in found):
        write_table(output, name, schema.empty_table())


def write_table(output: Attempt, name: str, table: pa.Table) -> None:
    """Writes a small table to `name/` of the artifact."""
    output.filesystem.create_dir(f"{output.base}/{name}", recursive=True)
    pq.write_table(table, f"{output.base}/{name}/part-000000.parquet", filesystem=output.filesystem)


def count(candidates: ray.data.Dataset, queries: ray.data.Dataset, images: Images, known: ray.ObjectRef) -> Counts:
    """The counts of everything validated."""
    return Counts(
        queries=_tally(queries, QUERY_COLUMNS),
        candidates=_tally(candidates, CANDIDATE_COLUMNS),
        images=images.count,
        rejected_images=images.rejects.num_rows,
        pools=ray.get(ray.remote(survey.Candidates.pool_sizes).remote(known)),
    )


def _tally(validated: ray.data.Dataset, columns: list[str]) -> list[dict[str, Any]]:
    """Rows counted by `columns`, and an example of each; see `validate.tally`."""
    tables = ray.get(_map(validated, validate.tally, columns).to_arrow_refs())
    return validate.merge_tallies([row for table in tables for row in table.to_pylist()], columns)


def _map(rows: ray.data.Dataset, function: Callable[..., Any], *arguments: Any, **options: Any) -> ray.data.Dataset:
    """`function(table, *arguments)` over whole blocks as Arrow tables, by tasks with these options of Ray's."""
    return rows.map_batches(function, batch_size=None, batch_format="pyarrow", fn_args=arguments, **options)


def _concatenated(tables: tuple[pa.Table, ...], schema: pa.Schema) -> pa.Table:
    """One table; Ray's empty blocks have no columns and are passed over."""
    return pa.concat_tables([schema.empty_table(), *(table for table in tables if table.num_rows)])


def _start(root: Place, source: SourceFile) -> pa.Table:
    """The first rows of a query file."""
    chunk = next(file_chunks(root, source, SMALLEST_CHUNK), None)
    return mbeir_rows.read_chunk(root, 0, chunk, {}) if chunk else RAW_QUERIES.empty_table()


def _cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
