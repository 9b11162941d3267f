"""How a run grows with its corpus: `python -m tests.bench scale [--sizes 10k,100k,1m] [--work DIR] [--output FILE]`.

For each size M-BEIR's layout is made with so many candidates, its pictures are unpacked from their tar parts, and
every stage runs by itself with a tiny backbone, watched from outside. What was measured is kept in DIR and not
measured again, a stage that was killed goes on where it stopped (its line then says so), and sections are written from
what is there. Trainings are of a few steps: they are there because what follows needs a student.

Each stage starts a Ray of its own on this machine, and takes all its cores. A million candidates took 18 minutes on
two cores (docs/scale.md); in DIR their corpus takes some 4 GB, what the stages write 1.5 GB, and copies in a cache
come on top. A smaller size shows whether all works: `--sizes 500`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pyarrow.parquet as pq

from pipeline.ablation.document import check_output, write_section
from pipeline.planning.dag import STAGES
from pipeline.wording import size_in_words
from stages.contract.context import InputError
from stages.evaluation.markdown_table import markdown_table
from tests.bench.watch import Watch
from tests.mbeir_made import unpack, write_mbeir
from tests.support import ROOT

SIZES = "10k,100k,1m"
SETTINGS = [
    *("--recipe", "smoke", "data.kind=mbeir"),
    "train.feature_weight=0.1",  # with it features reads the teacher over every train query
    "evaluate.teacher=false",  # or evaluate would embed the corpus a second time
    "cluster.actors=2",
]
NAMES = tuple(stage.name for stage in STAGES)
SHOWN = ("ingest", "features", "index", "evaluate")
WRITTEN = {"ingest": "images", "features": "features", "index": "embeddings"}
"""The files that hold a stage's rows."""
ALIKE = ("ingest",)
"""Stages whose files tell by their times how the pace changed: pictures are all of one size, while features and index
go from set to set, and a row of one takes longer than a row of another."""
FEWEST_FILES = 30
MOST = 1.2
"""Growth of the time a row, or of the driver's memory, above which a figure stands out."""
MIB = 2**20


def main(arguments: Sequence[str]) -> int:
    """Measures the sizes that were asked for and writes their sections."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.bench scale", description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--sizes", type=sizes, default=sizes(SIZES), help=f"candidates: 500, 10k, 1m, … (default {SIZES})"
    )
    work = Path(".puma") / "scale"
    told = f"kept between calls; a new one measures anew (default {work} of the repository)"
    parser.add_argument("--work", type=Path, metavar="DIR", default=ROOT / work, help=told)
    parser.add_argument("--output", type=Path, metavar="FILE", help="Markdown; one section for each size")
    options = parser.parse_args(arguments)
    check_output(options.output)
    found = {size: measure(options.work.resolve() / str(size), size) for size in options.sizes}
    for size, one in found.items():
        print(f"\n{size:,} candidates\n\n{section(size, one)}")
        if options.output:
            write_section(options.output, f"bench scale {size}", f"### {size:,} candidates\n\n{section(size, one)}")
    if len(found) > 1:
        print(f"\n{growth(found)}")
        if options.output:
            write_section(options.output, "bench scale", growth(found))
    return 0


def sizes(text: str) -> list[int]:
    """`10k,1m` as numbers, ascending. Raises InputError for what is none above 0."""
    factors = {"": 1, "k": 1000, "m": 1_000_000}
    found = [re.fullmatch(r"([0-9]*[1-9][0-9]*)([km]?)", size.strip().lower()) for size in text.split(",")]
    if not all(found):
        raise InputError(f"--sizes {text}: give numbers of candidates above 0 with commas between, such as 500,10k,1m")
    return sorted(int(size[1]) * factors[size[2]] for size in found if size)


def measure(work: Path, size: int) -> dict[str, Any]:
    """What each step of a size took; what `work` has of it is not measured again."""
    from tests.bench.__main__ import head

    place = work / "measured.json"
    found = json.loads(place.read_text()) if place.exists() else {"head": head(f"scale --sizes {size}")}
    for name in ("made", "unpacked", *NAMES):
        if name in found:
            continue
        say(f"{size:,} candidates: {name}")
        start = time.monotonic()
        found[name] = STEPS[name](work, found) if name in STEPS else run_stage(work, name, found)
        say(f"{size:,} candidates: {name} took {time.monotonic() - start:,.1f} s")
        work.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found, indent=1))
    return found


def make(work: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Writes the corpus; a half-written one is thrown away."""
    shutil.rmtree(work / "data", ignore_errors=True)
    start = time.monotonic()
    counts = write_mbeir(work / "data", int(work.name), say)
    return {"seconds": time.monotonic() - start, **counts}


def unpack_pictures(work: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Takes the pictures out of their parts."""
    start = time.monotonic()
    unpack(work / "data")
    return {"seconds": time.monotonic() - start}


STEPS = {"made": make, "unpacked": unpack_pictures}


def run_stage(work: Path, stage: str, found: dict[str, Any]) -> dict[str, Any]:
    """Runs the pipeline as far as a stage, which is the only one left to run, and watches it."""
    resumed = any(path.is_dir() for path in (work / "store" / stage).glob("*/*"))
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as spill:  # short, for sockets
        environment = os.environ | {"RAY_TMPDIR": spill, "PUMA_CACHE": str(work / "cache")}
        process = subprocess.Popen(command(work, stage), cwd=work, env=environment, stdout=subprocess.PIPE, text=True)
        with Watch(process.pid, Path(spill)) as watch:
            answer, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{stage} failed; the same command goes on from there")
    artifact = Path(json.loads(answer)["stages"][stage]["uri"])
    measured = {"resumed": resumed, **watch.peaks, **facts(stage, artifact, found)}
    return measured | ({"pace": None} if resumed else {})  # the pause would be in it


def command(work: Path, stage: str) -> list[str]:
    """What runs as far as a stage, with all that it keeps in `work`."""
    places = [f"data.path={work / 'data'}", f"store={work / 'store'}", f"tracking_uri=sqlite:///{work / 'mlflow.db'}"]
    return [sys.executable, str(ROOT / "pipeline" / "run.py"), *SETTINGS, *places, "--until", stage, "--json"]


def facts(stage: str, artifact: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a stage, the rows that it worked on, its files and bytes, and how its pace changed."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    tables = sorted((artifact / manifest["attempt"] / WRITTEN.get(stage, "none")).rglob("*.parquet"))
    written = [(path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in tables]
    rows = sum(count for _, count in written)
    rows = {"ingest": found["made"]["lines"], "evaluate": found["made"]["test"]}.get(stage, rows)
    sizes_of_files = [entry["size"] for entry in manifest["files"]]
    kept = {"files": len(sizes_of_files), "bytes": sum(sizes_of_files)}
    changed = pace(sorted(written)) if stage in ALIKE else None
    return {"seconds": manifest["seconds"], "rows": rows, **kept, "pace": changed}


def pace(written: Sequence[tuple[float, int]]) -> float | None:
    """Time a row in the last third of the files by that in the first third; None of few files.

    Args:
        written: (when, rows) of each file, by time.
    """
    if len(written) < FEWEST_FILES:
        return None
    third = len(written) // 3

    def each(part: Sequence[tuple[float, int]]) -> float:
        return (part[-1][0] - part[0][0]) / max(1, sum(rows for _, rows in part[1:]))

    first = each(written[: third + 1])
    return each(written[-third - 1 :]) / first if first else None


def section(size: int, found: dict[str, Any]) -> str:
    """A size's measurements as Markdown."""
    made = found["made"]
    total = sum(found[name]["seconds"] for name in ("made", "unpacked", *NAMES))
    table = [["stage", "rows", "s", "rows/s", "last to first third", "driver", "largest worker", "workers", "objects"]]
    table[0] += ["spilled", "files", "size"]
    for name in SHOWN:
        one = found[name]
        resumed = " (resumed)" if one["resumed"] else ""
        rate = "–" if one["resumed"] else f"{one['rows'] / one['seconds']:,.0f}"  # the seconds are of the rest
        memory = [f"{one[kind] / MIB:,.0f}" for kind in ("driver", "worker", "workers", "objects", "spilled")]
        changed = marked(one["pace"])
        written = [f"{one['files']:,}", size_in_words(one["bytes"])]
        table.append([name + resumed, f"{one['rows']:,}", f"{one['seconds']:,.1f}", rate, changed, *memory, *written])
    said = (
        f"{found['head']} {made['lines']:,} lines: {made['candidates']:,} test candidates, queries of train, val"
        f" and test {made['train']:,}, {made['val']:,} and {made['test']:,}; {made['pictures']:,} pictures. Written"
        f" in {made['seconds']:,.0f} s, unpacked in {found['unpacked']['seconds']:,.0f} s;"
        f" with all stages {total:,.0f} s."
    )
    return f"{fill(said, 119, break_long_words=False)}\n\n{markdown_table(table)}"


def growth(found: dict[int, dict[str, Any]]) -> str:
    """Time a row and the driver's peak of each stage, by size, and the last by the first."""
    head = ["stage", *(f"{size:,}" for size in found)]
    table = [[*head, "time a row, last to first", "driver, last to first"]]
    for name in SHOWN:
        every = [one[name] for one in found.values()]
        times = [None if one["resumed"] else one["seconds"] / max(1, one["rows"]) for one in every]
        peaks = [one["driver"] for one in every]
        told = ["–" if seconds is None else f"{1e6 * seconds:,.0f} µs" for seconds in times]
        cells = [f"{time}, {peak / MIB:,.0f} MiB" for time, peak in zip(told, peaks, strict=True)]
        table.append([name, *cells, ratio(times[-1], times[0]), ratio(peaks[-1], peaks[0])])
    said = (
        f"Time a row and the driver's peak by the number of candidates, in bold where they grow by more than {MOST}:"
    )
    return f"{said}\n\n{markdown_table(table)}"


def ratio(last: float | None, first: float | None) -> str:
    """The last by the first, where both are known."""
    return marked(last / first if last and first else None)


def marked(grown: float | None) -> str:
    """How something has grown, in bold where it has by more than MOST."""
    if not grown:
        return "–"
    return f"**{grown:.2f}**" if grown > MOST else f"{grown:.2f}"


def say(line: str) -> None:
    """One line of progress."""
    print(f"scale: {line}", file=sys.stderr, flush=True)
