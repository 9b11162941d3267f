"""The same for people: the answers of `store.py` on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from pipeline.terminal import text_table
from pipeline.wording import age_in_words, size_in_words


def print_list(console: Console, answer: Mapping[str, Any]) -> None:
    """Artifacts and runs as tables."""
    head = ["stage", "key", "age", "size", "files", "state", "run", "pinned"]
    rows = []
    for row in answer["artifacts"]:
        cells = {**row, "age": age_in_words(row["age"]), "size": size_in_words(row["bytes"]), "run": row["run"] or ""}
        marks = [name for name in ("pinned", "registered") if row[name]]
        rows.append([str(cells[name]) for name in head[:-1]] + [", ".join(marks)])
    console.print(f"{answer['store']}: {len(rows)} artifacts", soft_wrap=True)
    console.print(text_table([head, *rows]))
    head = ["id", "started", "status", "recipe"]
    console.print(text_table([head, *([str(run[name]) for name in head] for run in answer["runs"])]))


def print_garbage(console: Console, answer: Mapping[str, Any]) -> None:
    """What is deleted, or would be, and what was left alone."""
    verb = "deleted" if answer["applied"] else "would delete"
    lines = [f"{verb} {name}" for name in answer["artifacts"]]
    lines += [f"{verb} {len(answer['leftovers'])} files of killed or replaced attempts"] if answer["leftovers"] else []
    lines += [f"left {name} alone: {why}" for name, why in answer["skipped"].items()]
    lines += [f"{size_in_words(answer['bytes'])} in all{'' if answer['applied'] else '; --apply deletes them'}"]
    lines += [f"{size_in_words(answer['copies'])} of copies on this machine"] if answer["copies"] else []
    for line in lines:
        console.print(line, soft_wrap=True)


def print_manifest(console: Console, manifest: Mapping[str, Any]) -> None:
    """What the artifact is, what its key was made of, and its files."""
    facts = {name: manifest[name] for name in ("uri", "stage", "key", "attempt", "created", "seconds", "run", "git")}
    facts |= {f"input {name}": entry["key"] for name, entry in manifest["inputs"].items()}
    facts |= {f"param {name}": value for name, value in manifest["parts"]["params"].items()}
    facts |= {name: value for name, value in manifest["metrics"].items() if not isinstance(value, dict)}
    for name, value in facts.items():
        console.print(f"{name + ':':<12} {value}", soft_wrap=True)
    rows = [[entry["path"], size_in_words(entry["size"]), entry["sha256"][:12]] for entry in manifest["files"]]
    console.print(text_table([["file", "size", "sha256"], *rows]))


def print_damage(console: Console, answer: Mapping[str, Any]) -> None:
    """What is damaged, or that nothing is."""
    for line in answer["damage"] or [f"{len(answer['checked'])} artifacts are as they were written"]:
        console.print(line, soft_wrap=True)


def print_pins(console: Console, answer: Mapping[str, Any]) -> None:
    """What was pinned or let go of."""
    console.print(" ".join(f"{verb} {uri}" for verb, uri in answer.items()), soft_wrap=True)
