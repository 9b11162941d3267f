"""Writes small corpora and pairs for tests: records, tables, pictures, and what can be wrong with them."""

import csv
import json
from pathlib import Path
from typing import Any

from tests.mbeir_files import png, write_bytes

COLOURS = ("red", "green", "blue", "yellow")


def write_records(path: Path, rows: list[Any]) -> Path:
    """One JSON object, or one raw line, for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    """A table; the first row is its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_pictures(root: Path) -> Path:
    """A folder of four pictures, two of them below another, beside files that are none."""
    for number, colour in enumerate(COLOURS):
        write_bytes(root, f"{'deep/' if number % 2 else ''}{colour} square.png", png(colour, (56, 56)))
    write_bytes(root, "notes.txt", b"no picture")
    write_bytes(root, ".hidden/secret.png", png("black"))
    write_bytes(root, "._red square.png", b"what macOS keeps beside a picture")
    return root


def pair(number: int, split: str | None = None, **fields: Any) -> dict[str, Any]:
    """A good row: a text query that no other number asks, one positive, one negative."""
    row = {
        "query": {"text": f"something {COLOURS[number % 4]} {number}"},
        "positives": [{"id": f"p{number % 4}", "image": f"{COLOURS[number % 4]}.png"}],
        "negatives": [{"id": f"p{(number + 1) % 4}", "image": f"{COLOURS[(number + 1) % 4]}.png"}],
    }
    return {**row, **({"split": split} if split else {}), **fields}


def write_catalogue(folder: Path) -> Path:
    """Twenty-four records of texts and pictures, and one that is broken, in `folder`, which is returned."""
    for colour in COLOURS:
        write_bytes(folder, f"{colour}.png", png(colour, (56, 56)))
    good = [{"text": f"a {COLOURS[number % 4]} thing {number}"} for number in range(20)]
    write_records(folder / "goods.jsonl", [*good, *({"image": f"{colour}.png"} for colour in COLOURS), b"{broken"])
    return folder
