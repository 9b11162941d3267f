"""What came of tests, kept in files below `build/` from which documents are written: dataclasses by their `name`."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
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


def write_page(subject: str, told: str, document: Callable[[], str], arguments: Sequence[str]) -> int:
    """The command that writes a document from what is kept; where nothing is, it says so. The exit code.

    Args:
        subject: whose tests, in a package and by a marker of this name, have kept it.
        told: what the command says of itself.
        document: the whole page.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.{subject}", description=told)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it; without it to stdout")
    output = parser.parse_args(arguments).output
    if not place(subject).exists():
        lacking = f"{place(subject).relative_to(ROOT)} is not there"
        print(f"error: {lacking}; run `python -m pytest tests/{subject} -m {subject}` as root first", file=sys.stderr)
        return 2
    if output:
        output.write_text(document(), encoding="utf-8")
    else:
        print(document(), end="")
    return 0
