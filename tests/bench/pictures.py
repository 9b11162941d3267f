"""Where training reads its pictures from: a copy on the node that is memory-mapped, or the files as they lie.

Training asks for the pictures of a batch, which lie anywhere in the artifact. The ways compared: the copy that Puma
makes of the Parquet files once per node; the Parquet files themselves, in row groups small enough to be read for one
picture; and Lance's `take`. All are on a local disk whose pages are in memory, the best case for the files as they
lie: from a bucket each of their reads is a request, and the copy is the same. Also what the copy takes, by the way in
which the files are written.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from tests.bench.turns import ratio

FILES, PICTURES_EACH, BYTES = 32, 256, 40_000
BATCH, BATCHES, ROUNDS = 64, 64, 7
ROW_GROUP = 8
WRITTEN = {
    "plain, as ingest writes": {"use_dictionary": False, "compression": "NONE"},
    "the writer's defaults": {},
}


def pictures(directory: Path) -> dict[str, Any]:
    """Random batches of pictures from the mapped copy against Lance's take."""
    from stages.data.tables import MappedTable

    copies = {name: _copying(directory / str(number), how) for number, (name, how) in enumerate(WRITTEN.items())}
    table = MappedTable.open(_artifact(directory / "0"), "images", "image_id", cache=directory / "read")
    readers = {
        "the copy, mapped": _mapped(table),
        f"Parquet, row groups of {ROW_GROUP}": _parquet(directory / "groups"),
        "Lance, take": _lance(directory / "lance"),
    }
    speeds = _in_turns(readers)
    ours, rival = speeds["the copy, mapped"], speeds["Lance, take"]
    return {
        "ratio": ratio(ours, rival),
        "ours": {"pictures per second": median(ours)},
        "rival": {"pictures per second": median(rival)},
        "section": _section(speeds, copies),
    }


def _tables() -> Iterator[pa.Table]:
    """Pictures of `BYTES` random bytes, which no compression makes smaller, as those of JPEG."""
    random = np.random.default_rng(0)
    for file in range(FILES):
        ids = [_name(file, number) for number in range(PICTURES_EACH)]
        yield pa.table({"image_id": ids, "bytes": pa.array([random.bytes(BYTES) for _ in ids], pa.binary())})


def _name(file: int, number: int) -> str:
    return f"{file}-{number}"


def _artifact(root: Path) -> Any:
    """An artifact of the Parquet files below `images/`."""
    return SimpleNamespace(
        uri=str(root),
        stage="ingest",
        key="",
        manifest={},
        filesystem=pyarrow.fs.LocalFileSystem(),
        files=lambda prefix: sorted(map(str, (root / prefix).glob("*.parquet"))),
    )


def _copying(root: Path, how: dict[str, Any]) -> tuple[float, float]:
    """Seconds that it takes to copy the files once per node, and CPU seconds, the medians."""
    from stages.data.tables import MappedTable

    (root / "images").mkdir(parents=True)
    for number, table in enumerate(_tables()):
        pq.write_table(table, root / "images" / f"{number}.parquet", **how)
    took = []
    for number in range(ROUNDS):
        before, start = os.times(), time.perf_counter()
        MappedTable.open(_artifact(root), "images", "image_id", cache=root / f"cache{number}")
        after = os.times()
        took.append((time.perf_counter() - start, sum(after[:2]) - sum(before[:2])))
    return median(wall for wall, _ in took), median(cpu for _, cpu in took)


def _mapped(table: Any) -> Callable[[list[str]], list[bytes]]:
    return lambda names: [table.row(table.find(name))["bytes"] for name in names]


def _parquet(root: Path) -> Callable[[list[str]], list[bytes]]:
    root.mkdir()
    for number, table in enumerate(_tables()):
        path = root / f"{number}.parquet"
        pq.write_table(table, path, row_group_size=ROW_GROUP, use_dictionary=False, compression="NONE")
    opened = [pq.ParquetFile(root / f"{number}.parquet") for number in range(FILES)]  # footers are read once

    def read(names: list[str]) -> list[bytes]:
        places = [tuple(map(int, name.split("-"))) for name in names]
        groups = [(opened[file].read_row_group(row // ROW_GROUP, columns=["bytes"]), row) for file, row in places]
        return [group["bytes"][row % ROW_GROUP].as_py() for group, row in groups]

    return read


def _lance(root: Path) -> Callable[[list[str]], list[bytes]]:
    import lance

    schema = pa.schema([("image_id", pa.string()), ("bytes", pa.binary())])
    batches = (batch for table in _tables() for batch in table.cast(schema).to_batches())
    stored = lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(root))

    def read(names: list[str]) -> list[bytes]:
        places = [tuple(map(int, name.split("-"))) for name in names]
        rows = [file * PICTURES_EACH + row for file, row in places]
        return stored.take(rows, columns=["bytes"])["bytes"].to_pylist()

    return read


def _in_turns(readers: dict[str, Callable[[list[str]], list[bytes]]]) -> dict[str, list[float]]:
    """Pictures a second of each reader, round by round, after all have been seen to read the same.

    Raises:
        AssertionError: two readers give different pictures.
    """
    random = np.random.default_rng(1)
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(ROUNDS + 1):
        picks = random.integers(0, [FILES, PICTURES_EACH], (BATCH * BATCHES, 2))
        names = [_name(file, row) for file, row in picks]
        found = {}
        for name, read in readers.items():
            start = time.perf_counter()
            found[name] = [one for first in range(0, len(names), BATCH) for one in read(names[first : first + BATCH])]
            if turn:  # the first round warms up
                speeds[name].append(len(names) / (time.perf_counter() - start))
        first, *others = found.values()
        assert all(other == first for other in others), "the readers disagree"
    return speeds


def _section(speeds: dict[str, list[float]], copies: dict[str, tuple[float, float]]) -> str:
    megabytes = FILES * PICTURES_EACH * BYTES / 1e6
    lines = [
        f"{FILES * PICTURES_EACH:,} pictures of {BYTES / 1000:.0f} kB, batches of {BATCH} anywhere in them; "
        f"median and spread of {ROUNDS} rounds in turns, pages in memory.",
        "",
        "| read from | pictures a second |",
        "| --- | ---: |",
        *[f"| {name} | {median(of):,.0f} ({min(of):,.0f} to {max(of):,.0f}) |" for name, of in speeds.items()],
        "",
        "| the copy once per node, from Parquet that is | MB/s | CPU s for a GB |",
        "| --- | ---: | ---: |",
        *[
            f"| {name} | {megabytes / wall:,.0f} | {cpu / megabytes * 1000:.2f} |"
            for name, (wall, cpu) in copies.items()
        ],
    ]
    return "\n".join(lines)
