"""Queries of the command line or of a file, checked before anything heavy is loaded."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import InputError

if TYPE_CHECKING:
    from stages.data.images import Checked
    from stages.search.retriever import Query, Retriever


@dataclass(frozen=True)
class QueryInput:
    """One query as far as it can be checked without the index; `place` is its line in a file of queries."""

    text: str | None
    image: "Checked | None"
    want: str | None
    where: dict[str, Any] | Sequence[str]
    place: str = ""


def read_queries(options: argparse.Namespace) -> list[QueryInput]:
    """The one query of the command line, or those of `--queries`. Raises InputError, naming the first bad line."""
    if not options.queries:
        return [read_query(options)]
    if options.text is not None or options.image is not None or options.want or options.where:
        raise InputError("--queries has its own text, image, want and where; leave these options out")
    try:
        lines = options.queries.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"--queries {options.queries} can't be read: {error.strerror}; give a JSONL file") from None
    queries = [
        parse_query(line, options.k, options.queries, number)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not queries:
        raise InputError(f"--queries {options.queries} holds no query; write one JSON object in each line")
    return queries


def read_query(options: argparse.Namespace) -> QueryInput:
    """The query of `--text`, `--image`, `--want` and `--where`."""
    from stages.search.retriever import check_query

    text = check_query(options.text, options.want, options.k, options.image is not None)
    file = options.image and options.image.resolve()
    image = read_image(file.parent, file.name, f"--image {options.image}") if file else None
    return QueryInput(text, image, options.want, options.where)


def parse_query(line: bytes, k: int, file: Path, number: int) -> QueryInput:
    """The query in line `number` of a file, whose pictures' paths start from the file."""
    from stages.search.retriever import check_query

    try:
        fields = parse_fields(line)
        text = check_query(fields.get("text"), fields.get("want"), k, bool(fields.get("image")))
        image = read_image(file.parent, fields["image"], "the image") if fields.get("image") else None
    except InputError as error:
        raise InputError(f"{file}:{number}: {error}") from None
    return QueryInput(text, image, fields.get("want"), fields.get("where") or {}, f"{file}:{number}")


def read_image(directory: Path, reference: str, name: str) -> "Checked":
    """A picture below the directory, as ingest would store it. Raises InputError that calls it `name`."""
    from stages.data.formats import READ
    from stages.data.images import ImageLimits, ImageRejected, load

    try:
        return load(directory, reference, ImageLimits())
    except ImageRejected as error:
        raise InputError(f"{name} can't be used: {error}; give a whole {READ}") from None


def parse_fields(line: bytes) -> dict[str, Any]:
    """The JSON object in a line, with none but known fields of their types. Raises InputError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f'no JSON: {error}; write one object in a line, such as {{"text": "a red circle"}}') from None
    if not isinstance(fields, dict):
        raise InputError('a query is an object, such as {"text": "a red circle"}')
    if unknown := sorted(set(fields) - {"text", "image", "want", "where"}):
        raise InputError(f"unknown key '{unknown[0]}'; known: text, image, want, where")
    for name, kind in (("text", str), ("image", str), ("want", str), ("where", dict)):
        if not isinstance(fields.get(name), kind | None):
            raise InputError(f"{name} must be {'an object' if kind is dict else 'a text'}, not {fields[name]!r}")
    return fields


def ask(retriever: "Retriever", given: QueryInput) -> "Query":
    """The query as the index can answer it. Raises InputError, naming its line in a file of queries."""
    from stages.search.filters import parse_where

    try:
        where = given.where if isinstance(given.where, dict) else parse_where(given.where, retriever.card)
        return retriever.ask(given.text, given.image, given.want, where)
    except InputError as error:
        raise InputError(f"{given.place}: {error}" if given.place else str(error)) from None
