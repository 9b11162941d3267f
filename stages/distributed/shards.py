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

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.contract.context import Artifact, Attempt, Context, StageError

if TYPE_CHECKING:
    import pyarrow as pa

SECONDS_BETWEEN_LINES = 30

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


def map_shards(
    context: Context, prefix: str, stored: str, source: Artifact, actor: type, *,
    columns: list[str] | None = None, keep: Keep, finish: Keep, **arguments: Any,
) -> int:  # fmt: skip
    """Fills `prefix/` of the output with one file for each shard, those of killed attempts included; returns the rows.

    Args:
        stored: prefix of the rows in `source`.
        source: the artifact whose rows they are.
        actor: as for `stages.distributed.embedding.map_with_models`: loads a model, is called with tables.
        columns: of the stored rows; None is all.
        keep: chooses among the stored rows, before the actor sees them.
        finish: turns the actor's table into the one that is written.
    """
    import ray.data

    from stages.distributed.embedding import pool_of

    shards = cut(source, stored, context.cluster.rows_per_shard)
    done = set(context.output.adopt(prefix))
    todo = [shard for shard in shards if shard.name not in done]
    label = context.output.stage
    if len(todo) < len(shards):
        say(f"{label}: {len(shards) - len(todo)} of {len(shards)} shards of {prefix} were there")
    if todo:
        shared = {"ingest": context.inputs["ingest"], "cluster": context.cluster}
        work = {
            "output": context.output, "prefix": prefix, "shards": todo, "filesystem": source.filesystem,
            "columns": columns, "keep": keep, "finish": finish, "actor": actor, "arguments": shared | arguments,
        }  # fmt: skip
        places = ray.data.range(len(todo), override_num_blocks=len(todo))
        written = places.map_batches(Worker, fn_constructor_kwargs=work, batch_size=1, **pool_of(context.cluster))
        watch(written.iter_batches(batch_size=None, prefetch_batches=0), len(todo), f"{label}: {prefix}")
    return count_rows(context.output, prefix, len(shards))


class Worker:
    """One actor of a pool: a model that goes from shard to shard."""

    def __init__(self, output: Attempt, prefix: str, shards: list[Shard], filesystem: Any, columns: list[str] | None,
                 keep: Keep, finish: Keep, actor: type, arguments: dict[str, Any]):  # fmt: skip
        self.output, self.prefix, self.shards = output, prefix, shards
        self.filesystem, self.columns, self.keep, self.finish = filesystem, columns, keep, finish
        self.model = actor(**arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for place in batch["id"]:
            self._write(self.shards[int(place)])
        return {"id": batch["id"]}

    def _write(self, shard: Shard) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = pa.concat_tables(self.keep(table) for table in read(shard, self.filesystem, self.columns))
        table = self.finish(self.model(kept.combine_chunks()))
        with self.output.open(f"{self.prefix}/{shard.name}") as file:
            pq.write_table(table, file)


def watch(batches: Iterator[Any], total: int, label: str) -> None:
    """Waits for the shards; now and then says how many are done, and how long the rest takes."""
    start = told = time.monotonic()
    done = 0
    for batch in batches:
        done += len(batch["id"])
        now = time.monotonic()
        if now - told > SECONDS_BETWEEN_LINES and done < total:
            left = round((now - start) / done * (total - done))
            say(f"{label} {done}/{total} shards, {left // 60}:{left % 60:02d} left")
            told = now


def count_rows(output: Attempt, prefix: str, expected: int) -> int:
    """Rows of the files that were written. Raises StageError where files are missing."""
    import pyarrow.parquet as pq

    paths = files(output, prefix)
    if len(paths) != expected:
        raise StageError(f"{len(paths)} of {expected} files arrived at {prefix}/; run the same command again")
    return sum(pq.read_metadata(path, filesystem=output.filesystem).num_rows for path in paths)


def files(output: Attempt, prefix: str) -> list[str]:
    """Paths of the Parquet files that this attempt has below `prefix/`, sorted."""
    from pyarrow.fs import FileSelector

    below = FileSelector(f"{output.base}/{prefix}", recursive=True, allow_not_found=True)
    found = output.filesystem.get_file_info(below)
    return sorted(item.path for item in found if item.path.endswith(".parquet"))


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
