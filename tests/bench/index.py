"""The three index backends over the same clustered vectors: recall, CPU time a query, build time, size.

Vectors as a corpus might have them: 3,000 clusters of very unequal size in 60 groups, 48 latent dimensions and noise,
unit length. Exact search is the truth. CPU time is that of the whole process, so that a busy machine disturbs little.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.turns import span

ROWS, DIM = 200_000, 512
QUERIES, K, LATENT = 100, 10, 48
SHARES = {"one in ten": 0.1, "one in a hundred": 0.01}


class Corpus:
    """Draws vectors of one distribution."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        groups = random.normal(size=(60, LATENT))
        self.centres = groups[random.integers(0, 60, 3000)] + 0.5 * random.normal(size=(3000, LATENT))
        self.shares = 1 / np.arange(1, 3001)
        self.shares /= self.shares.sum()
        self.spread = random.normal(size=(LATENT, DIM)) / np.sqrt(LATENT)

    def vectors(self, rows: int, seed: int) -> np.ndarray:
        """Unit vectors float32 [rows, DIM]."""
        random = np.random.default_rng(seed)
        picks = random.choice(len(self.centres), rows, p=self.shares)
        points = self.centres[picks] + 0.25 * random.normal(size=(rows, LATENT))
        points = points @ self.spread + 0.05 * random.normal(size=(rows, DIM))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    def table(self, rows: int, seed: int, prefix: str) -> pa.Table:
        """Rows as an index stores them; the column `m0` is drawn evenly from 0 to 1."""
        points = self.vectors(rows, seed).astype(np.float16)
        return pa.table(
            {
                "did": [f"{prefix}{number}" for number in range(rows)],
                "dataset_id": pa.array(np.zeros(rows), pa.int32()),
                "modality": pa.array(["image"] * rows),
                "pools": pa.array([["corpus"]] * rows),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), DIM),
                "m0": pa.array(np.random.default_rng(seed + 1).random(rows)),
            }
        )


def run(directory: Path) -> dict[str, Any]:
    """Index backends on 200,000 × 512: CPU time a query, lance against exact."""
    from pyarrow.fs import LocalFileSystem

    from stages.search.exact import ExactIndex, HeldIndex
    from stages.search.faiss_index import FaissIndex
    from stages.search.lance_index import LanceIndex

    corpus = Corpus()
    for part in range(4):
        table = corpus.table(ROWS // 4, 10 + part, f"{part}-")
        pq.write_table(table, directory / f"part-{part}.parquet", row_group_size=8192)
    files = sorted(map(str, directory.glob("*.parquet")))
    exact = ExactIndex(tuple(files), LocalFileSystem())
    lance, lance_built = timed(lambda: LanceIndex.build(str(directory / "lance"), exact))
    faiss, faiss_built = timed(lambda: FaissIndex.of(exact.batches(exact.columns()), ROWS))
    held, held_built = timed(lambda: HeldIndex(exact))
    queries = corpus.vectors(QUERIES, 99)
    truth = {name: exact.search(queries, K, chosen)[0] for name, chosen in filters().items()}
    vectors = sum(Path(file).stat().st_size for file in files)
    results = {
        "exact": {**measure(held, queries[:20], truth), "build": held_built, "MiB": mib(vectors)},
        "lance": {**measure(lance, queries, truth), "build": lance_built, "MiB": sizes(directory / "lance")},
        "faiss": {**measure(faiss, queries, truth), "build": faiss_built, "MiB": mib(memory(faiss))},
    }
    for name, told in results.items():
        print(f"{name}: {told}", file=sys.stderr)
    cost = {name: told["none"]["cpu ms a query"] for name, told in results.items()}
    sides = {"ours": results["lance"], "rival": results["exact"], "faiss": results["faiss"]}
    return {"ratio": span([cost["exact"] / cost["lance"]]), **sides}


def filters() -> dict[str, Any]:
    """No filter, and conditions that let a known share of the rows through."""
    from stages.search.filters import Condition, Filter

    chosen = {name: Filter(conditions=(Condition("m0", "<", share),)) for name, share in SHARES.items()}
    return {"none": Filter(), **chosen}


def measure(index: Any, queries: np.ndarray, truth: dict[str, Any]) -> dict[str, Any]:
    """recall@10 and the cost of a query, one query at a time, by filter."""
    told = {}
    for name, chosen in filters().items():
        index.search(queries[:1], K, chosen)  # opens and warms
        found, cost = timed(
            lambda chosen=chosen: [index.search(query[None], K, chosen)[0].dids[0] for query in queries]
        )
        per_query = {
            f"{kind} ms a query": round(cost[f"{kind} s"] * 1000 / len(queries), 2) for kind in ("cpu", "wall")
        }
        told[name] = {"recall@10": recall(found, truth[name].dids), **per_query}
    return told


def recall(found: list[list[str]], truth: list[list[str]]) -> float:
    """Share of the true candidates that were found; `found` may be of the first queries only."""
    pairs = list(zip(found, truth, strict=False))
    return round(sum(len(set(one) & set(two)) for one, two in pairs) / sum(len(two) for _, two in pairs), 4)


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, and the seconds of the clock and of all cores together."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "wall s": round(time.perf_counter() - wall, 2),
        "cpu s": round(time.process_time() - cpu, 2),
    }


def memory(faiss: Any) -> int:
    """Bytes of the vectors, their ids and the columns beside them."""
    return faiss.index.ntotal * (2 * faiss.dim + 8) + faiss.columns.nbytes


def sizes(directory: Path) -> dict[str, float]:
    """MiB of the table's vectors and of its indexes."""
    indexes = sum(path.stat().st_size for path in (directory / "_indices").rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return {"table": mib(whole - indexes), "indexes": mib(indexes)}


def mib(count: int) -> float:
    """Bytes in MiB."""
    return round(count / 2**20, 1)
