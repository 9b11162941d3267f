"""What the grid `few_photos` reads, drawn from data in the M-BEIR layout: few labels, and all rows without any.

    python -m tests.bench.few_photos MBEIR DIRECTORY [SHARE]

`DIRECTORY/labelled` is `MBEIR` with a `SHARE` (0.1) of the train queries of each task, and `DIRECTORY/unpaired` is
`MBEIR` with the positives of its train queries dealt anew by chance within each task: every query and every candidate
stands in its role, and no row says what belongs together. All else is copied, for
links that leave a source are refused.

The grid's teacher learns from all labels, and its student and its curve from the tenth:

    python pipeline/run.py --recipe mbeir_tiny data.path=MBEIR --until backbone
    python pipeline/ablate.py mbeir_tiny few_photos backbone.source=local backbone.model=MODEL \\
      data.path=DIRECTORY/labelled distill.data.kind=mbeir distill.data.path=DIRECTORY/unpaired

`MODEL` is `model` in the artifact that the first line names.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

SEED = 0
TRAIN = Path("query", "train")

Row = dict[str, Any]
Change = Callable[[list[Row], random.Random], list[Row]]


def draw(mbeir: Path, output: Path, share: float = 0.1) -> None:
    """Writes both directories below `output`; the same arguments give the same rows."""
    changes: dict[str, Change] = {
        "labelled": lambda rows, chance: chance.sample(rows, max(1, round(share * len(rows)))),
        "unpaired": unpaired,
    }
    for name, change in changes.items():
        copy_with(mbeir, output / name, change)


def copy_with(mbeir: Path, copy: Path, change: Change) -> None:
    """`mbeir` at `copy`, its train queries changed task by task."""
    shutil.copytree(mbeir, copy)
    for file in sorted((copy / TRAIN).glob("*.jsonl")):
        chance, rows = random.Random(SEED), [json.loads(line) for line in file.open()]
        rows.sort(key=lambda row: row["task_id"])
        changed = [row for _, task in groupby(rows, lambda row: row["task_id"]) for row in change(list(task), chance)]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in changed))


def unpaired(rows: list[Row], chance: random.Random) -> list[Row]:
    """The rows of a task with each other's positives."""
    positives = [row["pos_cand_list"] for row in rows]
    chance.shuffle(positives)
    return [row | {"pos_cand_list": dealt} for row, dealt in zip(rows, positives, strict=True)]


if __name__ == "__main__":
    mbeir, output, *share = sys.argv[1:]
    draw(Path(mbeir), Path(output), *map(float, share))
