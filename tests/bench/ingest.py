"""Ingest beside a plain loop in one process, and beside the image folder of Hugging Face's `datasets`.

Pictures: a folder of photos. Ours is the whole stage on a cluster that has started, which reads, checks and hashes
every picture, finds copies, and writes rows and pictures. The plain loop calls the same checks one by one and writes
one Parquet file. `datasets` lists the folder, decodes each picture (its workers: as many as there are cores) and
writes Parquet; it runs where PUMA_DATASETS_PYTHON says and is left out without that. Rows: texts of a JSONL file
against a loop that parses, checks for copies and writes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.embed import photo
from tests.bench.turns import ratio, side_by_side, speeds, turns

PICTURES, ROWS, ROUNDS = 1200, 60_000, 5
FOLDER = """
import sys, tempfile
from datasets import load_dataset
source, workers = sys.argv[1], int(sys.argv[2])
def read(row):
    return {"width": row["image"].convert("RGB").width}  # decodes it
for line in sys.stdin:
    with tempfile.TemporaryDirectory() as place:
        rows = load_dataset("imagefolder", data_dir=source, split="train", cache_dir=place)
        rows = rows.map(read, num_proc=workers, cache_file_name=place + "/mapped.arrow")
        rows.to_parquet(place + "/rows.parquet")
    print(len(rows), flush=True)
"""
"""A process that is ready, as our cluster is: a line asks for the work once."""


def ingest(directory: Path) -> dict[str, Any]:
    """Pictures and rows a second of the stage against a plain loop in one process and `datasets`' image folder."""
    from pipeline.execution.cluster import connected
    from stages.contract.params import Cluster, cores

    photos, texts = directory / "photos", directory / "texts.jsonl"
    photos.mkdir()
    for number in range(PICTURES):
        (photos / f"{number}.jpg").write_bytes(photo(640, 480, number))
    texts.write_text("\n".join(json.dumps({"id": str(number), "text": told(number)}) for number in range(ROWS)))
    others: dict[str, Callable[[], Any]] = {"one process": partial(plain_pictures, photos, directory)}
    with ExitStack() as stack:
        if python := os.environ.get("PUMA_DATASETS_PYTHON"):
            others["datasets"] = stack.enter_context(by_datasets(python, photos, cores()))
        else:
            print("ingest: PUMA_DATASETS_PYTHON names no python that has `datasets`: left out", file=sys.stderr)
        stack.enter_context(connected(Cluster()))
        table = measure("pictures, 640 × 480", partial(stage, photos), others, PICTURES)
        table += measure("rows of text", partial(stage, texts), {"one process": partial(plain_rows, texts)}, ROWS)
        empty = seconds_of_little(directory)
    return side_by_side(table, section(table, empty), "kind", "beside")


def told(number: int) -> str:
    """A text of some 200 characters, no two alike."""
    return f"a small red thing number {number} on a wooden table " * 4


def measure(kind: str, ours: Callable[[], Any], others: dict[str, Callable[[], Any]], count: int) -> list[dict]:
    """All sides on one kind, in turns."""

    seconds = turns({"ours": ours, **others}, ROUNDS)
    table = []
    for name in others:
        rates = {side: {"a second": count / median(seconds[of])} for side, of in (("ours", "ours"), ("rival", name))}
        table.append({"kind": kind, "beside": name, **rates, "ratio": ratio(seconds[name], seconds["ours"])})
        print(f"ingest: {table[-1]}", file=sys.stderr, flush=True)
    return table


def stage(source: Path) -> None:
    """The stage by itself; raises where a row is left out."""
    from stages import ingest
    from tests.support import begin

    with tempfile.TemporaryDirectory() as store:
        context = begin(Path(store), "ingest", data=ingest.Params(kind="corpus", path=str(source)), seed=0)
        rejected = ingest.run(context)["rejects"]
    if rejected["by_reason"]:
        raise SystemExit(f"ingest: rejected {rejected}")


def plain_pictures(photos: Path, directory: Path) -> None:
    """The same checks in one process, and one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.data.images import ImageLimits, load
    from stages.data.schemas import IMAGES

    rows = {}
    for path in sorted(photos.iterdir()):
        checked = load(photos, path.name, ImageLimits(1_048_576))
        rows.setdefault(checked.image_id, vars(checked))
    pq.write_table(pa.Table.from_pylist(list(rows.values()), IMAGES), directory / "pictures.parquet")


def plain_rows(texts: Path) -> None:
    """Parses, drops copies, writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with texts.open() as file:
        rows = {row["text"]: row for row in map(json.loads, file) if row["text"].strip()}
    pq.write_table(pa.Table.from_pylist(list(rows.values())), texts.with_suffix(".parquet"))


def seconds_of_little(directory: Path) -> float:
    """What the stage takes for one picture and for next to no work: its passes and their workers."""
    little = directory / "little"
    little.mkdir()
    (little / "0.jpg").write_bytes(photo(640, 480, 0))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        stage(little)
        times.append(time.perf_counter() - start)
    return median(times)


@contextmanager
def by_datasets(python: str, photos: Path, workers: int) -> Iterator[Callable[[], None]]:
    """The image folder of `datasets`, in a process that waits."""
    command = [python, "-c", FOLDER, str(photos), str(workers)]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, bufsize=1, **piped) as process:

        def run() -> None:
            process.stdin.write("\n")
            if process.stdout.readline().strip() != str(PICTURES):
                raise SystemExit(f"ingest: {python} did not read the folder; does it have `datasets` and Pillow?")

        yield run
        process.stdin.close()


def section(table: list[dict[str, Any]], empty: float) -> str:
    """The measurements as Markdown; `empty` is the seconds of one picture."""
    lines = [["source", "beside", "a second", "there", "ratio", "in the rounds"]]
    lines += [[one["kind"], one["beside"], *speeds(one)] for one in table]
    told = f"{PICTURES:,} JPEG files, {ROWS:,} rows; the stage's cluster and the process of `datasets` have started."
    told += f" One picture takes the stage {empty:.1f} s: its passes over the rows, and their workers."
    return f"{told}\n\n{markdown_table(lines)}"
