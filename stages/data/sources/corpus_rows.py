"""One record of a corpus of one's own → one candidate with its metadata, or the reason why not."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from stages.data import schemas
from stages.data.ingest.validate import JUDGED_CANDIDATES
from stages.data.sources.mbeir import Chunk, lines
from stages.data.sources.mbeir_rows import POSITION_BITS, RAW_CANDIDATES, RAW_QUERIES, BadField
from stages.data.sources.records import Records, content_of, own_id, read_line, told_line

METADATA = pa.field("metadata", pa.string())  # JSON of all other columns, as the source has them
RAW = pa.schema([*RAW_CANDIDATES, METADATA])
JUDGED = pa.schema([*JUDGED_CANDIDATES, METADATA])
CANDIDATES = pa.schema([*schemas.CANDIDATES, METADATA])
NO_QUERIES = RAW_QUERIES.empty_table()
POOL = "corpus"
LARGEST = 2**53  # float64 holds every integer up to here; beyond lie ids and barcodes, which are no amounts
KINDS = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}


def read_rows(records: Records, number: int, chunk: Chunk) -> pa.Table:
    """All rows of chunk `number` in RAW; bad ones have a reason and what is known."""
    rows = []
    for line_number, line in lines(records.root, chunk):
        row: dict[str, Any] = {"position": (number << POSITION_BITS) + line_number - chunk.first_line, "pool": POOL}
        source = f"{records.name(chunk.source)}:{told_line(line, line_number)}"
        try:
            fields = read_line(line)
            row["did"] = own_id(fields, "a row") or source
            row |= candidate(fields)
        except BadField as error:
            row |= {"reason": error.reason, "detail": error.detail}
        rows.append(row | {"source": source})
    return pa.Table.from_pylist(rows, RAW)


def candidate(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns that a record tells. Raises BadField."""
    kind, text, image = content_of(fields, "the row")
    if "too many cells" in fields:
        raise BadField("too many cells", "the row has more cells than the header names; quote cells with commas")
    inner = fields.get("metadata")
    told = inner if isinstance(inner, dict) else {}
    rest = {name: value for name, value in fields.items() if name not in ("id", "text", "image", "metadata")}
    metadata = {name: value for name, value in (rest | told).items() if value is not None}
    shown = json.dumps(metadata, ensure_ascii=False) if metadata else None
    return {"dataset_id": 0, "modality": kind, "text": text, "image_path": image, "metadata": shown}


def kinds(table: pa.Table) -> pa.Table:
    """Which kinds of value each metadata column of kept rows holds, as rows (name, kind)."""
    found: dict[tuple[str, str], None] = {}
    reasons = table["reason"].to_pylist()
    for told, reason in zip(table["metadata"].to_pylist(), reasons, strict=True):
        if told is not None and reason is None:
            for name, value in json.loads(told).items():
                found[name, kind_of(value)] = None
    names, held = zip(*found, strict=True) if found else ((), ())
    return pa.table({"name": pa.array(names, pa.string()), "kind": pa.array(held, pa.string())})


def kind_of(value: Any) -> str:
    """text, number or truth; a list or an object counts as its text, as does an integer that float64 can't hold."""
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST) else "text"


def name_columns(found: Iterable[dict[str, str]]) -> dict[str, dict[str, str]]:
    """{name: {"column", "kind"}}: stored under plain names, for one's own may hold anything; mixed kinds are text."""
    kinds_of: dict[str, set[str]] = {}
    for row in found:
        kinds_of.setdefault(row["name"], set()).add(row["kind"])
    return {
        name: {"column": f"m{number}", "kind": next(iter(kinds_of[name])) if len(kinds_of[name]) == 1 else "text"}
        for number, name in enumerate(sorted(kinds_of))
    }


def with_columns(table: pa.Table, columns: dict[str, dict[str, str]]) -> pa.Table:
    """The table with a typed column for each metadata column, null where a row has none."""
    told = [json.loads(one) if one else {} for one in table["metadata"].to_pylist()]
    for name, column in columns.items():
        values = [stored(row.get(name), column["kind"]) for row in told]
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
