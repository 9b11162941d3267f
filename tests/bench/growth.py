"""Whether time a row and memory stay as they are while the number of rows grows: embed, train step, exact search.

Each at the smallest and at larger sizes in turns: rows that are embedded in one call, train queries that steps of 64
are drawn from and collated, candidates that one query is compared with. Memory is the peak of resident memory above
what was resident before, less the vectors that were asked for; each in a process of its own:
`python -m tests.bench.growth CASE_JSON`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.gradcache import ALLOCATOR, MIB, peak
from tests.bench.turns import ratio, side_by_side, spread, turns

SIZES = {
    "embed": (10_000, 20_000, 40_000),
    "train step": (10_000, 100_000, 1_000_000),
    "exact search": (10_000, 100_000, 1_000_000),
}
ROUNDS, STEPS, QUERIES, DIM = 5, 50, 16, 128


def growth(directory: Path) -> dict[str, Any]:
    """Time a row at the smallest size against the largest: embed, train step, exact search."""
    from tests.bench.embed import write_student
    from tests.bench.made import ROOT

    case = {"student": str(write_student(directory / "small", "small")), "place": str(directory)}
    table = []
    for work in SIZES:
        for measure in ("time", "memory"):
            given = json.dumps(case | {"work": work, "measure": measure})
            environment = os.environ | (ALLOCATOR if measure == "memory" else {})
            command = [sys.executable, "-m", "tests.bench.growth", given]
            answer = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(answer.stdout.splitlines()[-1])
            table += found if measure == "time" else []
            for one, size in zip(table[-len(found) :], found, strict=True):
                one |= size
        print(f"growth: {table[-len(found) :]}", file=sys.stderr, flush=True)
    grown = [one for one in table if one["rows"] > SIZES[one["work"]][0]]
    return side_by_side(grown, section(table), "work", "rows")


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [["work", "rows", "µs a row", "time at the smallest by it", "in the rounds", "MiB above"]]
    for one in table:
        told = [f"{one['ours']['µs']:,.3g}", *spread(one["ratio"]), f"{one['MiB']:,.0f}"]
        lines.append([one["work"], f"{one['rows']:,}", *told])
    told = f"Searches compare vectors of {DIM} values; a step's time is that of drawing, looking up and collating it."
    return f"{told}\n\n{markdown_table(lines)}"


def measured(case: dict[str, Any]) -> list[dict[str, Any]]:
    """One kind of work at all its sizes, in this process."""

    sizes, make = SIZES[case["work"]], WORK[case["work"]]
    runs = {size: make(case, size) for size in sizes}
    counted = {"embed": lambda size: size, "exact search": lambda size: size * QUERIES}
    count = counted.get(case["work"], lambda size: STEPS * 64)
    if case["measure"] == "memory":
        runs[sizes[0]][0]()
        return [{"MiB": peak(run) - kept / MIB} for run, kept in runs.values()]
    seconds = turns({size: run for size, (run, _) in runs.items()}, ROUNDS)
    each = {size: [one / count(size) for one in times] for size, times in seconds.items()}
    micros = {size: {"µs": 1e6 * median(times)} for size, times in each.items()}
    smallest = {"rival": micros[sizes[0]]}
    return [
        {"work": case["work"], "rows": size, "ours": micros[size], **smallest, "ratio": ratio(each[sizes[0]], times)}
        for size, times in each.items()
    ]


Run = tuple[Callable[[], Any], int]
"""What to run, and the bytes of what it gives back."""


def embedding(case: dict[str, Any], size: int) -> Run:
    """So many short texts in one call."""
    from stages.model.encoder import Encoder
    from stages.model.rows import Row

    encoder = Encoder.load(Path(case["student"]))
    rows = [Row(f"a small red thing number {number}") for number in range(size)]
    return partial(encoder.encode, rows), size * encoder.dim * 4


def stepping(case: dict[str, Any], size: int) -> Run:
    """Steps of 64 drawn from so many train queries, looked up and collated, as the loop does beside the model."""
    from stages.learn.loop import prepare
    from stages.learn.sampling import PairSampler
    from stages.learn.settings import Training
    from stages.model.encoder import Encoder

    artifact = write_pairs(Path(case["place"], f"pairs-{size}-{case['measure']}"), size)
    encoder = Encoder.load(Path(case["student"]))
    sampler = PairSampler(artifact, Training(batch_size=64), world=1, rank=0, seed=0, vary_instructions=True)
    sampler.pairs(0)  # tables are built at the first look
    return lambda: [prepare(encoder, sampler, None, 0, step) for step in range(STEPS)], 0


def write_pairs(place: Path, size: int) -> Any:
    """An ingest artifact of so many pairs of texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.data.schemas import CANDIDATES, IMAGES, INSTRUCTIONS, QUERIES
    from tests.support import begin, commit

    context = begin(place, "ingest")
    numbers = range(size)
    shared = {"dataset_id": [9] * size, "modality": ["text"] * size, "image_id": [None] * size}
    ids = [f"9:{number}" for number in numbers]
    candidates = {"did": ids, **shared, "text": [f"thing {number} on a table" for number in numbers]}
    candidates |= {"content_id": [f"t{number}" for number in numbers], "pools": [["union_train"]] * size}
    queries = {"qid": ids, **shared, "text": [f"find {number}" for number in numbers], "split": ["train"] * size}
    queries |= {"dataset": ["made"] * size, "task_id": [1] * size, "target_modality": ["text"] * size}
    queries |= {"positives": [[one] for one in ids], "negatives": [[]] * size, "pool": [None] * size}
    told = {"dataset_id": [9], "dataset": ["made"], "query_modality": ["text"], "target_modality": ["text"]}
    instructions = told | {"prompts": [["Find it."]]}
    tables = {"candidates": (candidates, CANDIDATES), "queries": (queries, QUERIES)}
    tables |= {"images": ({name: [] for name in IMAGES.names}, IMAGES), "instructions": (instructions, INSTRUCTIONS)}
    for name, (columns, schema) in tables.items():
        Path(context.output.base, name).mkdir(parents=True)
        table = pa.table({field.name: columns.get(field.name, [None] * size) for field in schema}, schema=schema)
        pq.write_table(table, f"{context.output.base}/{name}/part.parquet")
    return commit(place, context)


def searching(case: dict[str, Any], size: int) -> Run:
    """Queries one at a time against so many vectors that are held."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.fs import LocalFileSystem

    from stages.search.exact import ExactIndex, HeldIndex
    from stages.search.filters import Filter

    random = np.random.default_rng(0)
    file = Path(case["place"], f"vectors-{size}-{case['measure']}.parquet")
    points = random.normal(size=(size, DIM)).astype(np.float16)
    columns = {
        "did": [str(number) for number in range(size)],
        "dataset_id": pa.array(np.zeros(size), pa.int32()),
        "modality": pa.array(["text"] * size),
        "pools": pa.array([["corpus"]] * size),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), DIM),
    }
    pq.write_table(pa.table(columns), file, row_group_size=8192)
    held = HeldIndex(ExactIndex((str(file),), LocalFileSystem()))
    queries_QD = random.normal(size=(QUERIES, DIM)).astype(np.float32)
    return lambda: [held.search(query[None], 10, Filter()) for query in queries_QD], 0


WORK = {"embed": embedding, "train step": stepping, "exact search": searching}


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
