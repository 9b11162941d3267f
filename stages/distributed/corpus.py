"""index of your own corpus: any student, any folder of pictures and texts or file of records, no training.

    corpus ── read ──► rows ── check pictures ──► candidates/, images/ ── embed ──► embeddings/ ── build ──► lance/
    what fails on the way, with a reason and file:line ──► rejects/

Takes the place of the stage `index` where `index.corpus` is set (`pipeline.planning.dag.stages_of`); what it writes
is an index like any other, and holds its candidates itself. Columns of the records beside id, text and image are
metadata: they are shown with a result, and searches can be filtered by them.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import Attempt, Context, StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from stages.data.sources.remote import Place
    from stages.index import Params

VERSION = 1
MOST_COLUMNS = 64
COLUMNS = "index.columns"
MOST_REJECTS = 0.05  # of the rows, as in ingest, where these are not few


@dataclass(frozen=True)
class Unfinished:
    """What this attempt has written so far, readable by workers as an artifact is. Picklable."""

    stage: str
    key: str
    uri: str
    manifest: dict[str, Any]
    filesystem: Any

    @classmethod
    def of(cls, output: Attempt) -> "Unfinished":
        """The attempt's own files."""
        return cls("index", output.key, output.base, {"attempt": Path(output.base).name}, output.filesystem)

    def files(self, prefix: str) -> list[str]:
        """Paths of the files below `prefix/`, sorted."""
        from pyarrow.fs import FileSelector

        found = self.filesystem.get_file_info(FileSelector(f"{self.uri}/{prefix}", recursive=True))
        return sorted(item.path for item in found if item.is_file)


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; see the module header."""
    from stages.data.sources import corpus_rows
    from stages.distributed.pools import rate
    from stages.distributed.smaller import store
    from stages.search.backends import build, choose

    params, model = context.params.index, Path(context.params.student.model)
    rows, bad_pictures = read(context)
    counts = tally(context, rows, bad_pictures)
    keep(context, rows, counts["columns"])
    backend = choose(params.backend, counts["rows"], precision=params.precision)
    start = time.monotonic()
    into = partial(embed, context, counts, model)
    written, precision = store(context.output, params.precision, counts["rows"], into)
    seconds = time.monotonic() - start
    made = build(context.output, backend, written["files"])
    context.output.write_json("retriever.json", describe(context, counts, written["dim"], model) | precision | made)
    return {
        "rows": counts["rows"],
        **rate(written, counts["rows"], seconds),
        "bytes": written["bytes"],
        "pools": {corpus_rows.POOL: counts["rows"]},
        "rejects": counts["rejects"],
    }


def read(context: Context) -> "tuple[ray.data.Dataset, pa.Table]":
    """Reads and validates the corpus, and writes its pictures and rejects; the validated rows, and bad pictures.

    Raises:
        StageError: nothing is left, or too many rows are bad.
    """
    import ray.data

    from stages.data.images import ImageLimits
    from stages.data.ingest import flow, validate, wording
    from stages.data.metadata import UNTYPED
    from stages.data.schemas import REJECTS
    from stages.data.sources import corpus_rows, records

    params, output = context.params.index, context.output
    path, work = place(params), output.work / "records"
    files = records.find(path, "index.corpus", bare=True)
    laid = records.lay_out(path, files, work, params.columns.names(), setting=COLUMNS)
    chunks = flow.number_chunks(laid.root, laid.sources)
    rows = flow.read_chunks(laid.root, chunks, partial(corpus_rows.read_rows, laid), output)
    flow.warn_of_files(laid, (rows,), output)
    none = ray.data.from_arrow(corpus_rows.NO_QUERIES)
    numbers = flow.take_numbers(rows, none, [corpus_rows.POOL])
    images = flow.write_images(output, laid.root, (rows,), numbers, ImageLimits())
    flow.say(output, f"checked {numbers.path_count} pictures: {images.count} kept, {images.rejects.num_rows} rejected")
    for line in wording.skipped_lines(images.rejects):
        flow.say(output, line)
    known = flow.survey_candidates(numbers, images, [corpus_rows.POOL], {})
    validated = flow.validate_candidates(rows, known, images, validate.validated(UNTYPED))
    bad = validated.map_batches(
        validate.rejected, fn_args=("candidate", "did"), batch_size=None, batch_format="pyarrow"
    ).union(ray.data.from_arrow(images.rejects))
    flow.write(output, "rejects", bad, REJECTS)
    return validated, images.rejects


def tally(context: Context, validated: "ray.data.Dataset", bad_pictures: "pa.Table") -> dict[str, Any]:
    """Rows, modalities, rejects by reason, and the metadata columns with what they hold.

    Raises:
        StageError: nothing is left, too many rows are bad, or there are too many columns.
    """
    import ray

    from stages.data import metadata
    from stages.data.ingest import flow, validate
    from stages.data.ingest.wording import too_many

    place, columns = context.params.index.corpus, ["modality", "reason"]
    counted = validated.map_batches(validate.tally, fn_args=(columns,), batch_size=None, batch_format="pyarrow")
    rows = validate.merge_tallies(
        [row for table in ray.get(counted.to_arrow_refs()) for row in table.to_pylist()], columns
    )
    kept = {row["modality"]: row["count"] for row in rows if row["reason"] is None}
    bad: dict[str, int] = {}
    for row in rows:
        if row["reason"] is not None:
            bad[row["reason"]] = bad.get(row["reason"], 0) + row["count"]
    total, lost = sum(row["count"] for row in rows), sum(bad.values())
    said = dict(zip(bad_pictures["source"].to_pylist(), bad_pictures["detail"].to_pylist(), strict=True))
    examples = {
        row["reason"]: f"{row['source']}: {said.get(row['detail'], row['detail'])}"
        for row in reversed(rows)
        if row["reason"]
    }
    reasons = "; ".join(f"{reason} {count} ({examples[reason]})" for reason, count in list(bad.items())[:3])
    if not kept:
        raise StageError(f"index.corpus={place} has no usable row: {reasons or 'it is empty'}; correct the rows")
    if too_many(lost / total, total, MOST_REJECTS):
        raise StageError(
            f"{lost} of {total} rows of index.corpus={place} are bad: {reasons}; correct the rows or leave them out"
        )
    flow.say(
        context.output, f"{total - lost} rows kept, {lost} left out ({reasons})" if lost else f"{total} rows kept"
    )
    kinds = validated.map_batches(metadata.kinds, batch_size=None, batch_format="pyarrow").to_arrow_refs()
    found = [row for table in ray.get(kinds) for row in table.to_pylist()]
    named = metadata.name_columns(found)
    for line in metadata.spoiled(found):
        flow.say(context.output, f"warning: {line}; correct them and index again to filter by numbers")
    if len(named) > MOST_COLUMNS:
        raise StageError(
            f"index.corpus={place} has {len(named)} columns of metadata, {MOST_COLUMNS} is the most; leave some out"
        )
    return {"rows": sum(kept.values()), "modalities": kept, "rejects": {"candidates": lost, "by_reason": bad}} | {
        "columns": named
    }


def keep(context: Context, validated: "ray.data.Dataset", columns: dict[str, dict[str, str]]) -> None:
    """Writes the candidates, the values of whose metadata are of the kinds of `columns`."""
    from stages.data.ingest import flow, validate
    from stages.data.metadata import CANDIDATES, UNTYPED, typed

    def kept(table: "pa.Table") -> "pa.Table":
        return typed(validate.kept(table, UNTYPED), columns)

    rows = validated.map_batches(kept, batch_size=None, batch_format="pyarrow")
    flow.write(context.output, "candidates", rows, CANDIDATES)


def embed(context: Context, counts: dict[str, Any], model: Path, prefix: str) -> dict[str, Any]:
    """Writes vectors and typed metadata columns of the candidates to `prefix/`; see `pools.written` and `rate`."""
    from stages.data.metadata import finish
    from stages.distributed.actors import STUDENT, carry_out
    from stages.distributed.embedding import embed_table
    from stages.distributed.pools import written
    from stages.distributed.shards import Target, cut, shard_work

    own = Unfinished.of(context.output)
    work = shard_work(
        [Target(context.output, prefix, partial(finish, columns=counts["columns"]))],
        cut(own, "candidates", context.cluster.rows_per_shard),
        own,
        partial(embed_table, model=STUDENT, side="candidate"),
        keep=whole,
    )
    carry_out(context, {STUDENT: context.output.send(model)}, work, rows=own, label="index")
    return written(context.output, prefix, counts["rows"]) | {"computed": len(work)}


def whole(table: "pa.Table") -> "pa.Table":
    """All rows: such a corpus has one pool."""
    return table


def describe(context: Context, counts: dict[str, Any], dim: int, model: Path) -> dict[str, Any]:
    """The content of `retriever.json`."""
    from stages.data.sources.corpus_rows import POOL
    from stages.model.identity import identify, instructions_of
    from stages.search.backends import FORMAT

    return {
        "format": FORMAT,
        "dim": dim,
        "rows": counts["rows"],
        "split": None,
        "pools": {POOL: counts["rows"]},
        "union": None,
        "modalities": counts["modalities"],
        "metadata": counts["columns"],
        "instructions": instructions_of(model),
        "corpus": context.params.index.corpus,
        "student": {"directory": str(model), "identity": identify(model), **place_in_store(context.output, model)},
    }


def place_in_store(output: Attempt, model: Path) -> dict[str, str]:
    """Stage, key and attempt of a student that is an artifact of the store that is written to; else nothing.

    Such a student is found again where the store is moved, or is a bucket, of which `model` is one machine's cache.
    """
    _work, _key, _stage, root = output.work.resolve().parents[:4]
    below = model.resolve().relative_to(root).parts if model.resolve().is_relative_to(root) else ()
    if len(below) != 4 or below[-1] != "model":
        return {}
    return dict(zip(("stage", "key", "attempt"), below[:3], strict=True))


def check(params: "Params") -> None:
    """Raises InputError where the corpus can't be read; cheap enough for every plan."""
    from stages.data.sources import columns, delimited, records

    for file in records.find(place(params), "index.corpus", bare=True):
        if file.suffix.lower() in delimited.TABLES:
            names = columns.beside_pictures(file.name, params.columns.names())
            columns.check_columns(delimited.read_header(file), names, str(file), COLUMNS)


def place(params: "Params") -> "Place":
    """Where the corpus lies. Raises InputError for an address that nothing can read."""
    from stages.data.sources import remote

    return remote.source(params.corpus, "index.corpus")


def fingerprint(params: "Params", student: Any) -> list[str]:
    """What identifies the corpus (names, sizes and times or ETags) and the student (samples of its weights)."""
    from stages.data.sources import records
    from stages.model.identity import identify

    return [records.fingerprint(place(params), texts=True), identify(Path(student.model))]
