"""What came of tests, kept in files below `build/` from which documents are written: dataclasses by their `name`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from tests.support import ROOT

Outcome = TypeVar("Outcome")


def place(subject: str) -> Path:
    """The file of a subject."""
    return ROOT / "build" / f"{subject}.json"


def known(subject: str, kind: type[Outcome]) -> dict[str, Outcome]:
    """What is kept, by name."""
    if not place(subject).exists():
        return {}
    return {row["name"]: kind(**row) for row in json.loads(place(subject).read_text(encoding="utf-8"))}


def keep(subject: str, outcome: Any) -> None:
    """Keeps an outcome in the place of an earlier one of its name."""
    place(subject).parent.mkdir(exist_ok=True)
    rows = [asdict(row) for row in (known(subject, type(outcome)) | {outcome.name: outcome}).values()]
    place(subject).write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
