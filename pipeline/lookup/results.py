"""What a search found: as JSON, as a table for the terminal, and as picture files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.terminal import open_console, printable, text_table
from stages.contract.context import InputError

if TYPE_CHECKING:
    from stages.search.retriever import Query, Result, Retriever

NAME_LENGTH = 60  # of a saved picture's file name


def as_json(query: "Query", results: Sequence["Result"], index: str) -> dict[str, Any]:
    """The answer to one query, as the server gives it too; queries are the student's."""
    found = [result.to_json() for result in results]
    return {"results": found, "query": query.to_json(), "index": index, "model": "student"}


def print_table(query: "Query", results: Sequence["Result"], stdout: TextIO) -> None:
    """Ranked rows for a person."""
    console = open_console(stdout)
    if not results:
        filtered = query.filter.conditions or query.filter.datasets
        console.print(f"nothing found: {'no candidate meets the conditions' if filtered else 'the index holds none'}")
        return
    others = ["others"] if any(result.metadata for result in results) else []
    rows = [["rank", "score", "id", "modality", "text", "image", *others]]
    for rank, result in enumerate(results, start=1):
        cells = [result.id, result.modality, result.text or "", result.image or "", *(facts(result) for _ in others)]
        rows.append([str(rank), f"{result.score:.4f}", *map(printable, cells)])
    console.print(text_table(rows))
    console.print(printable(f"wanted: {query.want or 'anything'}; instruction: {query.instruction or 'none'}"))


def facts(result: "Result") -> str:
    """The other columns of a corpus of your own, one in each line."""
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in (result.metadata or {}).items()
    )


def save_images(retriever: "Retriever", results: Sequence["Result"], directory: Path) -> None:
    """Writes each result's picture as `01_<id>.jpg`, so that a person can look."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for rank, result in enumerate(results, start=1):
            if result.image:
                data, kind = retriever.picture(result.image)
                name = "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in result.id)[:NAME_LENGTH]
                (directory / f"{rank:02d}_{name}.{'jpg' if kind == 'jpeg' else kind}").write_bytes(data)
    except OSError as error:
        raise InputError(
            f"--save-images {directory}: {error.strerror}; give a directory that can be written"
        ) from None
