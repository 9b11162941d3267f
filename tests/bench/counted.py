"""Costs of a run over M-BEIR that are counted where the code asks for them, and those of a plan and of mining.

Each gives rows of the table of `tests.bench.costs`: what, before, now, how it was got.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from pipeline.artifacts import local
from pipeline.artifacts.store import Attempt, Store
from pipeline.config.load import read_config
from pipeline.wording import size_in_words
from stages.data.keys import hash_ids
from stages.data.order import drawn, upsampled
from stages.data.sources import changes
from stages.distributed.shards import parquet_options
from stages.mining.negatives import COLUMNS, Rule, mine_block
from stages.search.device import Ids
from stages.search.exact import ExactIndex
from tests.bench.published import CANDIDATES, SETS, TRAIN_QUERIES

RECIPE = "puma_qwen2vl_7b"
FOLDERS, EACH, PICTURES = 30, 1_000, 5_000_000
SHARDS, SHARD = 64, 2**20
BLOCK, MINED, POOL, DIM = 1_024, 2_048, 8_192, 3_584
ROUNDS = 3

Row = tuple[str, str, str, str]


def rows(directory: Path) -> list[Row]:
    """All of them."""
    for name in ("loads", "commits", "pictures", "pool"):
        (directory / name).mkdir()
    return [
        *teacher_rows(),
        *teacher_loads(directory / "loads"),
        *read_again(directory / "commits"),
        *planning(directory / "pictures"),
        *mining(directory / "pool"),
    ]


def teacher_rows() -> list[Row]:
    """Of M-BEIR's train queries those that the steps of distillation come to, drawn as the stages draw them."""
    asked = read_config(RECIPE, ["data.path=M-BEIR", "backbone.revision=x"])[0].distill
    group = np.repeat(np.arange(len(SETS)), [one.train for one in SETS])
    visited = np.unique(drawn(upsampled(group, asked.smallest_task), asked.draws, seed=0))
    what = f"train queries that the teacher reads, with their positives, for {asked.steps:,} steps of "
    what += f"{asked.batch_size} (`{RECIPE}`)"
    return [(what, f"{TRAIN_QUERIES:,}", f"{len(visited):,}", "counted: drawn as the stage does, from M-BEIR's sizes")]


def teacher_loads(directory: Path) -> list[Row]:
    """How often an actor of `features` loads a model; five before: each side, each side of the sample, the timing."""
    from tests.loads_world import loads  # with transformers, which others have to prepare for

    found = []
    for name, layer in (("given", -1), ("auto", "auto")):
        (directory / name).mkdir()
        found.append(loads(directory / name, layer))
    now = f"{found[0]}, with `features.layer=auto` {found[1]}"
    return [
        ("loads of the teacher by an actor of `features`", "5", now, "counted in the stage; before as its code has it")
    ]


def read_again(directory: Path) -> list[Row]:
    """Bytes whose checksum a commit takes by reading them."""

    def by_stage(output: Attempt, name: str) -> None:
        with output.open(name) as file:
            file.write(bytes(SHARD))

    def by_ray_data(output: Attempt, name: str) -> None:
        Path(output.base, name).parent.mkdir(parents=True, exist_ok=True)
        with output.filesystem.open_output_stream(f"{output.base}/{name}") as file:
            file.write(bytes(SHARD))

    written, found = size_in_words(SHARDS * SHARD), []
    for who, write in (("a stage writes itself", by_stage), ("Ray Data writes", by_ray_data)):
        store = Store(directory / write.__name__)
        output = store.begin("features", "0123456789ab")
        for number in range(SHARDS):
            write(output, f"features/{number}.parquet")
        with counted_reads() as sizes:
            store.commit(output, {"metrics": {}})
        what = f"bytes that a commit reads again of {written} that {who}"
        found.append((what, written, size_in_words(sum(sizes)), "counted, on this disk"))
    return found


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The sizes of files that are read for their checksum meanwhile."""
    take, sizes = local.checksum, []

    def counted(path: Path) -> str:
        sizes.append(path.stat().st_size)
        return take(path)

    with mock.patch.object(local, "checksum", counted):
        yield sizes


def planning(root: Path) -> list[Row]:
    """What a plan looks at to see that a source is as it was."""
    for folder in range(FOLDERS):
        (root / f"{folder}").mkdir()
        for number in range(EACH):
            (root / f"{folder}" / f"{number}.jpg").touch()

    def every_file() -> list[Any]:
        files = [f"{folder}/{name}" for folder, names in changes.walk_folders(root) for name in names]
        return sorted(changes.stat_below(root, file) for file in files)

    before, now = in_turns(every_file, lambda: changes.of_directory(root))
    count, larger = FOLDERS * EACH, PICTURES / (FOLDERS * EACH)
    return [
        (
            f"CPU s of a plan for a folder of {count:,} pictures",
            f"{before:.3f}",
            f"{now:.3f}",
            f"{measured()}, in memory",
        ),
        (
            f"the same for {PICTURES:,}",
            f"{before * larger:.1f}",
            f"{now * larger:.1f}",
            "computed from it, by pictures",
        ),
    ]


def mining(directory: Path) -> list[Row]:
    """Negatives by one task for all queries, against a task for each block; candidates as the stage stores them."""
    random = np.random.default_rng(3)
    dids = [f"9:{number}" for number in range(POOL)]
    hashes = pa.array(hash_ids(dids), pa.uint64())
    pool = pa.table({"did": dids, "modality": ["text"] * POOL, "did_hash": hashes, "content_hash": hashes})
    pool = pool.append_column("vector", unit(random, POOL))
    asked = {"qid": [f"9:q{number}" for number in range(MINED)], "modality": ["text"] * MINED}
    asked |= {"target_modality": ["text"] * MINED, "text": asked["qid"], "image_id": pa.nulls(MINED, pa.string())}
    asked |= {"positives": [[did] for did in dids[:MINED]]}
    queries = pa.table(asked).append_column("vector", unit(random, MINED))
    pq.write_table(pool, directory / "pool.parquet", **parquet_options(pool.schema))
    stored = partial(ExactIndex((str(directory / "pool.parquet"),), LocalFileSystem()).batches, COLUMNS)

    def by(block: int) -> list[Any]:
        parts = [queries.slice(start, block) for start in range(0, MINED, block)]
        return [mine_block(part, stored, Rule(5, 0.95))["negatives"].to_pylist() for part in parts]

    assert [*chain(*by(BLOCK))] == by(MINED)[0], "the two ways differ"
    before, now = in_turns(lambda: by(BLOCK), lambda: by(MINED))
    what = f"CPU s to mine for {MINED:,} queries among {POOL:,} × {DIM:,} in Parquet"
    return [(what, f"{before:.2f}", f"{now:.2f}", f"{measured()}; before: a pass for each {BLOCK:,}, by today's code")]


def sorting() -> str:
    """Why ids are not sorted once at writing: what sorting them takes, beside what else a pass does."""
    random = np.random.default_rng(4)
    ids = pa.array([f"{number % 10}:{number}" for number in random.permutation(CANDIDATES)])
    tile = pa.table({"did": ids[:POOL]}).append_column("vector", unit(random, POOL))
    queries_QD, rows_ND = (random.normal(size=(count, DIM)).astype(np.float32) for count in (BLOCK, POOL))
    sorted_tile, products = in_turns(lambda: tile.take(pc.sort_indices(tile["did"])), lambda: queries_QD @ rows_ND.T)
    (everything,) = in_turns(lambda: Ids.of([ids]))
    return (
        f"Ids are sorted at every pass. On a CPU that takes {sorted_tile:.3f} s for a tile of {POOL:,}, whose products"
        f" with 8,192 queries take {8 * products:.1f} s; for a GPU {everything:.1f} s for all {CANDIDATES:,}, once for"
        f" a task, which reads {CANDIDATES * DIM * 2 / 1e9:.0f} GB of vectors. CPU seconds, {measured()}."
    )


def unit(random: np.random.Generator, count: int) -> pa.Array:
    """Unit vectors [count, DIM] as they are stored."""
    rows_ND = random.normal(size=(count, DIM)).astype(np.float32)
    rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows_ND.astype(np.float16).reshape(-1)), DIM)


def in_turns(*ways: Callable[[], Any]) -> list[float]:
    """Median CPU seconds of each way, round by round."""
    took: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for way, times in zip(ways, took, strict=True):
            start = time.process_time()
            way()
            times.append(time.process_time() - start)
    return [median(times) for times in took]


def measured() -> str:
    """How."""
    return f"measured, median of {ROUNDS} rounds in turns"
