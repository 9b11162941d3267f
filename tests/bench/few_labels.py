"""What the grid `distillation` reads, drawn from pairs and texts: few labels, many texts without any.

    python -m tests.bench.few_labels PAIRS.jsonl TEXTS.jsonl DIRECTORY [LABELS [TEXTS]]

`PAIRS.jsonl` has the layout of `data.kind=pairs`, each row with a `split`; `TEXTS.jsonl` has rows of `id` and `text`,
whose ids begin with `d-` where they are like queries and with `w-` where they are like candidates. `LABELS` (2,000)
train pairs stay, and all of the other splits, each split a task of its own with a pool of its own. `texts.jsonl` are
`TEXTS` (12,800) texts, those of these train pairs and others beside them, half like queries and half like candidates:
what a teacher reads and no label is needed for. `unpaired.jsonl` are the same texts in their roles: each row a query
and a candidate that chance put side by side, in the layout of pairs.
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LABELS, TEXTS = 2_000, 12_800
SEED = 0


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open() as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def draw(pairs: Path, texts: Path, output: Path, labels: int, count: int = TEXTS) -> None:
    """Writes the three files below `output`; the same arguments give the same rows."""
    if labels > count // 2:
        raise SystemExit(f"{labels} pairs have {2 * labels} texts, and {count} were asked for; raise TEXTS")
    output.mkdir(parents=True, exist_ok=True)
    chance, rows, free = random.Random(SEED), read(pairs), read(texts)
    train = chance.sample([row for row in rows if row["split"] == "train"], labels)
    others = [row for row in rows if row["split"] != "train"]
    write(output / "pairs.jsonl", [row | {"task": row["split"]} for row in train + others])
    more = count // 2 - labels
    queries = [row["query"]["text"] for row in train]
    candidates = [row["positives"][0]["text"] for row in train]
    queries += chance.sample([row["text"] for row in free if row["id"].startswith("d-")], more)
    candidates += chance.sample([row["text"] for row in free if row["id"].startswith("w-")], more)
    for side in (queries, candidates):
        chance.shuffle(side)
    said = enumerate(queries + candidates)
    write(output / "texts.jsonl", [{"id": f"t{place}", "text": text} for place, text in said])
    sides = enumerate(zip(queries, candidates, strict=True))
    write(output / "unpaired.jsonl", [unpaired(place, query, candidate) for place, (query, candidate) in sides])


def unpaired(place: int, query: str, candidate: str) -> dict[str, Any]:
    """A row of two texts that chance put side by side."""
    positive = {"id": f"c{place}", "text": candidate}
    return {"id": f"q{place}", "query": {"text": query}, "positives": [positive], "split": "train", "task": "unpaired"}


if __name__ == "__main__":
    pairs, texts, output, *counts = sys.argv[1:]
    labels, count = (*map(int, counts), *(LABELS, TEXTS)[len(counts) :])
    draw(Path(pairs), Path(texts), Path(output), labels, count)
