"""The metadata of a user's own corpus: what records say beside id, text and image, as typed columns of an index."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from stages.data import schemas

METADATA = pa.field("metadata", pa.string())  # JSON of all other columns, as the source has them
RAW = pa.schema([*schemas.RAW_CANDIDATES, METADATA])
CANDIDATES = pa.schema([*schemas.CANDIDATES, METADATA])
LARGEST = 2**53  # float64 holds every integer up to here; beyond lie ids and barcodes, which are no amounts
KINDS = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}


def kinds(table: pa.Table) -> pa.Table:
    """Which kinds of value each metadata column of kept rows holds, as rows (name, kind)."""
    found: dict[tuple[str, str], None] = {}
    for text, reason in zip(table["metadata"].to_pylist(), table["reason"].to_pylist(), strict=True):
        if text is not None and reason is None:
            found |= {(name, kind_of(value)): None for name, value in json.loads(text).items()}
    names, kinds_of = zip(*found, strict=True) if found else ((), ())
    return pa.table({"name": pa.array(names, pa.string()), "kind": pa.array(kinds_of, pa.string())})


def kind_of(value: Any) -> str:
    """text, number or truth; a list or an object counts as its text, as does an integer that float64 can't hold."""
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST) else "text"


def name_columns(found: Iterable[dict[str, str]]) -> dict[str, dict[str, str]]:
    """{name: {"column", "kind"}}: stored under plain names, for a user's may hold anything; mixed kinds are text."""
    kinds_of: dict[str, set[str]] = {}
    for row in found:
        kinds_of.setdefault(row["name"], set()).add(row["kind"])
    return {
        name: {"column": f"m{number}", "kind": next(iter(kinds_of[name])) if len(kinds_of[name]) == 1 else "text"}
        for number, name in enumerate(sorted(kinds_of))
    }


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
