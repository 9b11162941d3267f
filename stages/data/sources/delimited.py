"""CSV and TSV: a header, and rows that are written out as JSON lines.

Cells stay texts here. What separates them is found by the header: a comma, or what Excel writes where commas are
decimal marks.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from stages.contract.context import InputError
from stages.data.sources.columns import rename
from stages.data.sources.remote import Place

TABLES = {".csv": ",", ".tsv": "\t"}
SEPARATORS = (",", ";", "\t", "|")
LINE = "\0line"  # where a record of a table or a text stood; no column can be called so
LONGEST = 10_000_000  # characters of one cell
START = 65_536  # characters that hold a header


def read_header(source: Place) -> list[str]:
    """The names of a table's columns, as they are written. Raises InputError where it has none."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        start = file.read(START)
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=_separator(start, source), strict=True)
    try:
        return _checked(next(reader, []), source)
    except csv.Error as error:
        raise InputError(f"{source}:1: {error}; correct the quotes of the header") from None


def _checked(names: list[str], source: Place) -> list[str]:
    if not names or len(set(names)) < len(names):
        raise InputError(f"{source} needs a first line that names each column once")
    return names


def _separator(start: str, source: Place) -> str:
    """What separates a table's cells, by its first characters: its ending's sign, unless only another cuts them."""
    own = TABLES[source.suffix.lower()]
    widths = {sign: _width(start, sign) for sign in (own, *SEPARATORS)}
    return own if widths[own] > 1 else max(widths, key=lambda sign: widths[sign])


def _width(start: str, separator: str) -> int:
    """How many columns the header has that way; 0 where it can't be read so."""
    try:
        return len(next(csv.reader(io.StringIO(start, newline=""), delimiter=separator, strict=True), []))
    except csv.Error:
        return 0


def write_table(source: Place, target: Path, names: Mapping[str, str]) -> Path:
    """One record for each row of a CSV or TSV with a header; empty cells are left out, the others stay texts.

    `names` are those of its columns here, see `columns.names_of`.

    Raises:
        InputError: the file has no header, or its quotes can't be followed.
    """
    csv.field_size_limit(LONGEST)
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        separator = _separator(file.read(START), source)
    # Bytes that are no UTF-8 become signs that no JSON text may hold: their row is rejected, not the file.
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, target.open("w") as written:
        reader = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            reader.fieldnames = _checked(rename(list(reader.fieldnames or ()), names), source)
            for row in reader:
                extra = {"too many cells": True} if row.pop(None, None) else {}
                cells = {name: text for name, text in row.items() if text and text.strip()}
                written.write(json.dumps({**cells, **extra, LINE: reader.line_num}) + "\n")
        except csv.Error as error:
            raise InputError(f"{source}:{reader.line_num}: {error}; correct the quotes of the row") from None
    return target
