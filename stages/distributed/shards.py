"""Work cut into shards that a killed run does not repeat: rows in, one Parquet file out for each.

A shard is a range of the rows of an artifact, in the order of its files. It is read, worked on and written by one
actor, and its file has a name made of its number and appears whole or not at all (`Attempt.open`). So a file that is
there is a shard that is done; the next attempt of the same key takes it over (`Attempt.adopt`) and computes the rest.
Which rows meet in a forward pass depends on the shard alone, so an interrupted run gives the same vectors as one that
was not.

Ray Data's own checkpointing was the alternative. It keeps the ids of all rows in memory, needs a pool of actors of its
own beside the models (a resumed run on two CPUs waited for ever), follows rows only from a file to a write, and saves
nothing smaller than a write task, whose size it chooses itself. Here memory is one shard for each actor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.contract.context import Artifact, Attempt, StageError
from stages.distributed.actors import Models, Work, say

if TYPE_CHECKING:
    import pyarrow as pa

Keep = Callable[["pa.Table"], "pa.Table"]


@dataclass(frozen=True)
class Shard:
    """The rows of one output file: (path, first row, number of rows) of each input file that it touches."""

    name: str
    pieces: tuple[tuple[str, int, int], ...]


def cut(artifact: Artifact, prefix: str, rows: int) -> list[Shard]:
    """The shards of `rows` rows over the Parquet files below `prefix/`; reads only their footers."""
    import pyarrow.parquet as pq

    shards: list[Shard] = []
    pieces: list[tuple[str, int, int]] = []
    room = rows
    for path in artifact.files(prefix):
        count, start = pq.read_metadata(path, filesystem=artifact.filesystem).num_rows, 0
        while start < count:
            taken = min(room, count - start)
            pieces.append((path, start, taken))
            start, room = start + taken, room - taken
            if not room:
                shards.append(Shard(f"{len(shards):06d}.parquet", tuple(pieces)))
                pieces, room = [], rows
    if pieces:
        shards.append(Shard(f"{len(shards):06d}.parquet", tuple(pieces)))
    return shards


def read(shard: Shard, filesystem: Any, columns: list[str] | None = None) -> Iterator["pa.Table"]:
    """The rows of a shard, piece by piece."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path, start, count in shard.pieces:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            groups, skipped, seen = [], 0, 0
            for number in range(file.num_row_groups):
                size = file.metadata.row_group(number).num_rows
                if seen + size <= start:
                    skipped += size
                elif seen < start + count:
                    groups.append(number)
                seen += size
            batches = file.iter_batches(batch_size=count, row_groups=groups, columns=columns)
            table = pa.Table.from_batches(_within(batches, start - skipped, count))
        yield table


def _within(batches: Iterator["pa.RecordBatch"], start: int, count: int) -> list["pa.RecordBatch"]:
    """`count` rows of a stream from its row `start` on; batches behind them are not read."""
    found = []
    for batch in batches:
        part = batch.slice(start, count) if start < batch.num_rows else None
        start = max(0, start - batch.num_rows)
        if part is not None:
            found.append(part)
            count -= part.num_rows
        if not count:
            break
    return found


@dataclass(frozen=True)
class Target:
    """Where shards are written: a directory of an output, and what turns a computed table into the one to write."""

    output: Attempt
    prefix: str
    finish: Callable[["pa.Table"], "pa.Table"]


def shard_work(
    targets: Sequence[Target],
    shards: list[Shard],
    source: Artifact,
    compute: Callable[[Models, "pa.Table"], "pa.Table"],
    *,
    columns: list[str] | None = None,
    keep: Keep,
) -> list[Work]:
    """The work that fills each target with one file for each shard; files of killed attempts are kept.

    Args:
        targets: each gets a file of every shard, from one computation.
        shards: of `cut`.
        source: the artifact whose rows they are.
        compute: what the models make of a table of rows.
        columns: of the stored rows; None is all.
        keep: chooses among the stored rows, before a model sees them.
    """
    done = set.intersection(*(set(one.output.adopt(one.prefix)) for one in targets))
    todo = [shard for shard in shards if shard.name not in done]
    if len(todo) < len(shards):
        first = targets[0]
        say(f"{first.output.stage}: {len(shards) - len(todo)} of {len(shards)} shards of {first.prefix} were there")
    common = {"filesystem": source.filesystem, "compute": compute, "columns": columns, "keep": keep}
    write = partial(write_shard, targets=tuple(targets), **common)
    return [Work(write, {"shard": shard}) for shard in todo]


def write_shard(
    models: Models,
    *,
    targets: Sequence[Target],
    shard: Shard,
    filesystem: Any,
    compute: Callable[[Models, "pa.Table"], "pa.Table"],
    columns: list[str] | None,
    keep: Keep,
) -> None:
    """Reads a shard, computes it and writes its file to each target."""
    import pyarrow as pa

    kept = pa.concat_tables(keep(table) for table in read(shard, filesystem, columns))
    write_table(compute(models, kept.combine_chunks()), shard.name, targets)


def write_table(computed: "pa.Table", name: str, targets: Sequence[Target]) -> None:
    """Writes a computed table to each target, whole or not at all."""
    for target in targets:
        write_file(target.finish(computed), target.output, f"{target.prefix}/{name}")


def write_file(table: "pa.Table", output: Attempt, name: str) -> None:
    """Writes a table to the file `name` of an artifact, whole or not at all, its vectors as `parquet_options` says."""
    import pyarrow.parquet as pq

    with output.open(name) as file:
        pq.write_table(table, file, **parquet_options(table.schema))


def parquet_options(schema: "pa.Schema") -> dict[str, Any]:
    """What a Parquet writer is told of a table with vectors: the column `vector` plain and without statistics.

    Hardly a value of it comes twice and nobody asks for its least. With a dictionary, which is the writer's default,
    8,192 vectors of 3,584 numbers took five times as long to read and four times as long to write.
    """
    import pyarrow as pa

    others = [one for one in schema if one.name != "vector"]
    leaves = [f"{one.name}.list.element" if pa.types.is_list(one.type) else one.name for one in others]
    return {"use_dictionary": leaves, "write_statistics": leaves}


def count_rows(output: Attempt, prefix: str, expected: int) -> int:
    """Rows of the files that were written. Raises StageError where files are missing."""
    import pyarrow.parquet as pq

    paths = files(output, prefix)
    if len(paths) != expected:
        raise StageError(f"{len(paths)} of {expected} files arrived at {prefix}/; run the same command again")
    return sum(pq.read_metadata(path, filesystem=output.filesystem).num_rows for path in paths)


def files(output: Attempt, prefix: str) -> list[str]:
    """Paths of the Parquet files that this attempt has below `prefix/`, sorted."""
    return parquet_below(output.filesystem, f"{output.base}/{prefix}")


def parquet_below(filesystem: Any, directory: str) -> list[str]:
    """Paths of the Parquet files below a directory, sorted."""
    from pyarrow.fs import FileSelector

    found = filesystem.get_file_info(FileSelector(directory, recursive=True, allow_not_found=True))
    return sorted(item.path for item in found if item.path.endswith(".parquet"))
