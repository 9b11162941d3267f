"""The metadata of a user's own corpus: what records say beside id, text and image, as typed columns of an index.

A column has one type, which all rows decide together: a number where every value is one. The cells of a table are
texts, so they are kept as they are written until that is known; what ends as text keeps its spelling.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from stages.data import schemas

METADATA = pa.field("metadata", pa.string())  # JSON of all other columns, as the source has them
CELLS = pa.field("cells", pa.bool_())  # whether they are cells of a table, which are all texts
RAW = pa.schema([*schemas.RAW_CANDIDATES, METADATA, CELLS])
CANDIDATES = pa.schema([*schemas.CANDIDATES, METADATA])
UNTYPED = pa.schema([*CANDIDATES, CELLS])
LARGEST = 2**53  # float64 holds every integer up to here; beyond lie ids and barcodes, which are no amounts
KINDS = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
FOUND = pa.schema(
    [("name", pa.string()), ("kind", pa.string()), ("count", pa.int64()), ("examples", pa.list_(pa.string()))]
)
"""What `kinds` tells of a block: how many values of a kind a column has, and where the first ones stand."""
SHOWN = 3


def kinds(table: pa.Table) -> pa.Table:
    """Which kinds of value each metadata column of kept rows holds, as `FOUND`."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table.select(["metadata", "cells", "reason", "source"]).to_pylist():
        if row["metadata"] is None or row["reason"] is not None:
            continue
        for name, value in json.loads(row["metadata"]).items():
            kind = kind_of(value, row["cells"])
            if kind is None:
                continue
            told = found.setdefault((name, kind), {"name": name, "kind": kind, "count": 0, "examples": []})
            told["count"] += 1
            if len(told["examples"]) < SHOWN:
                told["examples"].append(f"{str(value)[:40]!r} ({row['source']})")
    return pa.Table.from_pylist(list(found.values()), FOUND)


def kind_of(value: Any, cell: bool = False) -> str | None:
    """text, number or truth, and None for a blank. A `cell` is a text that may be written as one of the others.

    A list or an object counts as its text, as does an integer that float64 can't hold.
    """
    if cell:
        value = read_cell(value)
    if isinstance(value, str):
        return "text" if value.strip() else None
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST) else "text"


def read_cell(text: str) -> str | int | float | bool:
    """The value that a table's cell is written as: a number or a truth, or the text itself."""
    written = text.strip()
    if written.lower() in ("true", "false"):
        return written.lower() == "true"
    if not NUMBER.fullmatch(written) or not math.isfinite(float(written)):
        return text
    if not re.fullmatch(r"-?\d+", written):
        return float(written)
    return int(written) if abs(float(written)) <= LARGEST else text


def name_columns(found: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """{name: {"column", "kind"}}: stored under plain names, for a user's may hold anything; mixed kinds are text."""
    kinds_of: dict[str, set[str]] = {}
    for row in found:
        kinds_of.setdefault(row["name"], set()).add(row["kind"])
    return {
        name: {"column": f"m{number}", "kind": next(iter(kinds_of[name])) if len(kinds_of[name]) == 1 else "text"}
        for number, name in enumerate(sorted(kinds_of))
    }


def spoiled(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each column that is text although more than half of its values are numbers, with the others."""
    counts: dict[str, dict[str, int]] = {}
    examples: dict[str, list[str]] = {}
    for row in found:
        of_kind = counts.setdefault(row["name"], {})
        of_kind[row["kind"]] = of_kind.get(row["kind"], 0) + row["count"]
        if row["kind"] != "number":
            examples.setdefault(row["name"], []).extend(row["examples"])
    lines = []
    for name, of_kind in sorted(counts.items()):
        total = sum(of_kind.values())
        if total > (numbers := of_kind.get("number", 0)) > total / 2:
            shown = ", ".join(examples[name][:SHOWN])
            lines.append(
                f"column '{name}' is text, for {total - numbers} of its {total} values are no numbers: {shown}"
            )
    return lines


def typed(table: pa.Table, columns: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """`UNTYPED` rows as `CANDIDATES`: each value of the metadata is of its column's kind, as results show it."""
    rows = zip(table["metadata"].to_pylist(), table["cells"].to_pylist(), strict=True)
    shown = [None if text is None else _shown(json.loads(text), bool(cells), columns) for text, cells in rows]
    place = table.column_names.index("metadata")
    return table.set_column(place, METADATA, pa.array(shown, pa.string())).select(CANDIDATES.names)


def _shown(values: dict[str, Any], cells: bool, columns: Mapping[str, Mapping[str, str]]) -> str | None:
    kept = {}
    for name, value in values.items():
        if columns.get(name, {"kind": "text"})["kind"] == "text":
            kept[name] = value
        elif kind_of(value, cells) is not None:  # no blank between numbers
            kept[name] = read_cell(value) if cells else value
    return json.dumps(kept, ensure_ascii=False) if kept else None


def with_columns(table: pa.Table, columns: dict[str, dict[str, str]]) -> pa.Table:
    """The table with a typed column for each metadata column, null where a row has none."""
    rows = [json.loads(text) if text else {} for text in table["metadata"].to_pylist()]
    for name, column in columns.items():
        values = [stored(row.get(name), column["kind"]) for row in rows]
        table = table.append_column(column["column"], pa.array(values, KINDS[column["kind"]]))
    return table


def finish(table: pa.Table, columns: dict[str, dict[str, str]]) -> pa.Table:
    """Candidates with vectors as an index stores them."""
    return with_columns(table, columns).drop_columns(["text", "image_id", "content_id", "metadata"])


def stored(value: Any, kind: str) -> Any:
    """A metadata value as its column holds it."""
    if value is None or kind != "text":
        return value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
