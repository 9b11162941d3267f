"""CSV and TSV: a header, and rows that are written out as JSON lines.

Cells stay texts here. What separates them is found by the header and the row below: a comma, or what Excel
writes where commas are decimal marks; or it is told by a line `sep=;` above the header, as Excel has it.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TextIO

from stages.contract.context import InputError
from stages.data.sources.columns import rename
from stages.data.sources.remote import Place

TABLES = {".csv": ",", ".tsv": "\t"}
SEPARATORS = (",", ";", "\t", "|")
LINE = "\0line"  # where a record of a table or a text stood; no column can be called so
LONGEST = 10_000_000  # characters of one cell
START = 65_536  # characters that hold a header and a row
TOLD = re.compile(r'"?sep=(.)"?\r?\n')
STRANGE = re.compile("[\0\ud800-\udfff]")  # of UTF-16 read as UTF-8, and of bytes that are no UTF-8


def read_header(source: Place) -> list[str]:
    """The names of a table's columns, as they are written. Raises InputError where it has none."""
    with _opened(source) as (file, separator, above):
        reader = csv.reader(io.StringIO(file.read(START), newline=""), delimiter=separator, strict=True)
        try:
            return _checked(next(reader, []), source)
        except csv.Error as error:
            raise InputError(f"{source}:{1 + above}: {error}; correct the quotes of the header") from None


@contextmanager
def _opened(source: Place) -> Iterator[tuple[TextIO, str, int]]:
    """A table from its header on, what separates its cells, and the number of lines above the header.

    Bytes that are no UTF-8 become signs that no JSON text may hold: their row is rejected, not the file.
    """
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        start = file.read(START)
    told = TOLD.match(start)
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if told:
            file.readline()
        yield file, told[1] if told else _separator(start, source), int(told is not None)


def _checked(names: list[str], source: Place) -> list[str]:
    if any(map(STRANGE.search, names)):
        raise InputError(f"the header of {source} is no text in UTF-8; save the table as CSV UTF-8")
    if not names or len(set(names)) < len(names):
        raise InputError(f"{source} needs a first line that names each column once")
    return names


def _separator(start: str, source: Place) -> str:
    """What separates a table's cells, by its first characters.

    Its ending's sign if that cuts the header, unless only other ones cut the row below into as many cells.
    """
    own = TABLES[source.suffix.lower()]
    widths = {sign: _widths(start, sign) for sign in (own, *SEPARATORS)}
    cutting = {sign: found for sign, found in widths.items() if found[0] > 1}
    likely = {sign: found for sign, found in cutting.items() if found[0] == found[1]} or cutting
    return own if own in likely or not likely else max(likely, key=lambda sign: likely[sign])


def _widths(start: str, separator: str) -> tuple[int, int]:
    """How many cells the header and the row below have that way; 0 for one that can't be read so."""
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=separator, strict=True)
    found: list[int] = []
    with suppress(csv.Error):
        found.extend(len(row) for row in islice(reader, 2))
    header, below = [*found, 0, 0][:2]
    return header, below


def write_table(source: Place, target: Path, names: Mapping[str, str]) -> Path:
    """One record for each row of a CSV or TSV with a header; empty cells are left out, the others stay texts.

    `names` are those of its columns here, see `columns.names_of`.

    Raises:
        InputError: the file has no header, or its quotes can't be followed.
    """
    csv.field_size_limit(LONGEST)
    with _opened(source) as (file, separator, above), target.open("w") as written:
        reader = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            reader.fieldnames = _checked(rename(list(reader.fieldnames or ()), names), source)
            for row in reader:
                extra = {"too many cells": True} if row.pop(None, None) else {}
                cells = {name: text for name, text in row.items() if text and text.strip()}
                written.write(json.dumps({**cells, **extra, LINE: reader.line_num + above}) + "\n")
        except csv.Error as error:
            raise InputError(f"{source}:{reader.line_num + above}: {error}; correct the quotes of the row") from None
    return target
