"""Equal queries of a task become one, with the candidates of all their rows.

Tables of pairs often have one positive in a row, and a query as often as it has positives. As queries of their own
these would be each other's false negatives, and no model could answer more than one of them by its first result.

As in `survey`, every row leaves a few numbers behind first: a hash of what makes queries equal. Only rows whose hash
is there more than once leave their candidates as well.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stages.data.ingest.survey import good
from stages.data.keys import hash_ids, locate, seen
from stages.data.schemas import RAW_QUERIES

TASK = ("split", "dataset", "task_id")
"""What two equal queries share besides their text and picture."""
LISTS = ("positives", "negatives")
KEYS = pa.schema([("key", pa.uint64())])
PARTS = pa.schema(
    [*KEYS, ("position", pa.int64()), *((name, pa.list_(pa.string())) for name in LISTS)],
)
"""What a row leaves behind whose query is there more than once."""


@dataclass(frozen=True)
class Merged:
    """The queries that are there more than once. Arrays [N], sorted by key."""

    keys: np.ndarray  # uint64
    positions: np.ndarray  # int64: of the first row
    lists: pa.Table  # all positives and negatives
    rows: int
    """How many rows they were."""

    @classmethod
    def of(cls, parts: pa.Table) -> "Merged":
        """From the `PARTS` of all rows, in any order."""
        found: dict[int, dict[str, Any]] = {}
        for row in parts.sort_by([("key", "ascending"), ("position", "ascending")]).to_pylist():
            known = found.setdefault(row["key"], {"position": row["position"], "positives": {}, "negatives": {}})
            for name in LISTS:
                known[name] |= dict.fromkeys(row[name] or ())
        lists = [
            {
                "positives": list(one["positives"]),
                "negatives": [did for did in one["negatives"] if did not in one["positives"]],
            }
            for one in found.values()
        ]
        return cls(
            np.array(list(found), np.uint64),
            np.array([one["position"] for one in found.values()], np.int64),
            pa.Table.from_pylist(lists, pa.schema([RAW_QUERIES.field(name) for name in LISTS])),
            len(parts),
        )


def row_keys(table: pa.Table) -> np.ndarray:
    """uint64 [N]: equal for equal queries of good `RAW_QUERIES` rows, as `seen` tells them."""
    task = [table[name].to_pylist() for name in TASK]
    content = map(seen, table["text"].to_pylist(), table["image_path"].to_pylist())
    return hash_ids("\0".join(map(str, (*values, *shown))) for *values, shown in zip(*task, content, strict=True))


def keys(table: pa.Table) -> pa.Table:
    """`KEYS` of the good rows."""
    return pa.table({"key": row_keys(good(table))}, schema=KEYS)


def repeated(table: pa.Table) -> np.ndarray:
    """The keys, uint64, sorted, that are more than once in the `KEYS` of all rows."""
    found, counts = np.unique(table["key"].to_numpy(), return_counts=True)
    return found[counts > 1]


def parts(table: pa.Table, several: np.ndarray) -> pa.Table:
    """`PARTS` of the good rows whose keys are among `several`, sorted."""
    table = good(table)
    found = row_keys(table)
    kept = pa.array(locate(found, several) >= 0)
    left = table.append_column("key", pa.array(found, pa.uint64())).filter(kept)
    return left.select(PARTS.names).cast(PARTS)


def merge(table: pa.Table, merged: Merged) -> pa.Table:
    """`RAW_QUERIES` rows without those whose query an earlier one asks, which has their candidates."""
    usable = np.array([reason is None for reason in table["reason"].to_pylist()], bool)
    places = np.where(usable, locate(row_keys(table), merged.keys), -1)
    rows = []
    for place, row in zip(places, table.to_pylist(), strict=True):
        if place < 0:
            rows.append(row)
        elif merged.positions[place] == row["position"]:
            rows.append(row | merged.lists.slice(int(place), 1).to_pylist()[0])
    return pa.Table.from_pylist(rows, RAW_QUERIES)
