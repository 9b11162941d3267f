"""Which rows are kept and why the others are not: pure functions from tables of read rows to validated ones.

A validated row holds the columns of its final schema, and beside them `source`, `reason` (null: kept) and `detail`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.ingest.outcome import DUPLICATE
from stages.data.ingest.survey import Candidates, Firsts, ImageVerdicts, content_hashes, query_keys
from stages.data.keys import content_id, hash_ids, locate
from stages.data.modalities import MODALITIES
from stages.data.schemas import CANDIDATES, QUERIES, REJECTS
from stages.data.sources.chunks import SourceFile

_VERDICT = [pa.field("source", pa.string()), pa.field("reason", pa.string()), pa.field("detail", pa.string())]


def validated(schema: pa.Schema) -> pa.Schema:
    """The columns of a validated row that ends in `schema`."""
    return pa.schema([*schema, *_VERDICT])


VALIDATED_CANDIDATES = validated(CANDIDATES)
VALIDATED_QUERIES = validated(QUERIES).append(pa.field("dangling", pa.int32()))  # ids that lead nowhere, dropped


def validate_candidates(
    table: pa.Table, known: Candidates, images: ImageVerdicts, schema: pa.Schema = VALIDATED_CANDIDATES
) -> pa.Table:
    """Validates `RAW_CANDIDATES` rows. Later rows of a did that say the same are merged away: their pools are known.

    `schema` may have more columns than VALIDATED_CANDIDATES; what is read into them passes through.
    """
    keys, positions = hash_ids(table["did"].to_pylist()), table["position"].to_numpy()
    first, places = known.firsts.is_first(keys, positions), locate(keys, known.firsts.keys)
    contents = content_hashes(table)
    image_ids, image_reasons = images.look_up(hash_ids(table["image_path"].to_pylist()))
    rows = []
    for number, row in enumerate(table.to_pylist()):
        if row["reason"] is None and not first[number]:
            if known.contents[places[number]] == contents[number]:
                continue
            row |= _rejected("conflicting id", "an earlier row gives this id another text or image")
        elif row["reason"] is None and image_reasons[number]:
            row |= _rejected(image_reasons[number], row["image_path"])
        elif row["reason"] is None:
            row["pools"] = list(known.sets[known.pool_sets[places[number]]])
            row["image_id"] = image_ids[number]
            row["content_id"] = content_id(row["text"], row["image_id"])
        rows.append(row)
    return pa.Table.from_pylist(rows, schema)


def validate_queries(
    table: pa.Table, firsts: Firsts, known: Candidates, images: ImageVerdicts, pools: Mapping[str, str]
) -> pa.Table:
    """Validates `RAW_QUERIES` rows. `pools` maps a query file to the name of its local pool."""
    first = firsts.is_first(query_keys(table), table["position"].to_numpy())
    image_ids, image_reasons = images.look_up(hash_ids(table["image_path"].to_pylist()))
    rows = []
    for number, row in enumerate(table.to_pylist()):
        file = row["source"].rpartition(":")[0]
        if row["reason"] is None and not first[number]:
            if "/union_train/" in file:  # up-sampling repeats rows on purpose
                continue
            row |= _rejected(DUPLICATE, f"an earlier {row['split']} row has this qid")
        elif row["reason"] is None and image_reasons[number]:
            row |= _rejected(image_reasons[number], row["image_path"])
        elif row["reason"] is None:
            row |= _with_candidates(row, known)
            row["image_id"] = image_ids[number]
            row["pool"] = row["pool"] or pools.get(file)
        rows.append(row)
    return pa.Table.from_pylist(rows, VALIDATED_QUERIES)


def kept(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The kept rows of a validated table, in their final schema."""
    return table.filter(pc.is_null(table["reason"])).select(schema.names).cast(schema)


def rejected(table: pa.Table, kind: str, id_column: str) -> pa.Table:
    """The rejected rows of a validated table as `REJECTS`."""
    table = table.filter(pc.is_valid(table["reason"]))
    kinds = pa.array([kind] * len(table), pa.string())
    return pa.table([kinds, *(table[name] for name in (id_column, "source", "reason", "detail"))], schema=REJECTS)


def own_pool(table: pa.Table, source: SourceFile, known: Candidates) -> str:
    """The first of `source.pools` that holds a positive of these `RAW_QUERIES` rows, or simply the first."""
    found: set[str] = set()
    for dids in table["positives"].to_pylist():
        places = known.places(hash_ids(dids or []))
        found |= {pool for place in places[places >= 0] for pool in known.sets[known.pool_sets[place]]}
    return next((pool for pool in source.pools if pool in found), source.pools[0])


def tally(table: pa.Table, columns: list[str]) -> pa.Table:
    """Validated rows counted by `columns` (`reason` among them), with the first source and detail of each."""
    if "dangling" not in table.column_names:
        table = table.append_column("dangling", pa.nulls(len(table), pa.int32()))
    measures = [([], "count_all"), ("source", "first"), ("detail", "first"), ("dangling", "sum")]
    counted = table.group_by(columns, use_threads=False).aggregate(measures)
    return counted.rename_columns([*columns, "count", "source", "detail", "dangling"])


def merge_tallies(rows: list[dict[str, Any]], columns: list[str]) -> list[dict[str, Any]]:
    """Tallies of blocks, in order, added up."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        known = merged.setdefault(tuple(row[name] for name in columns), {**row, "count": 0, "dangling": 0})
        known["count"] += row["count"]
        known["dangling"] += row["dangling"] or 0
    return list(merged.values())


def _with_candidates(row: dict[str, Any], known: Candidates) -> dict[str, Any]:
    """Existing positives and negatives and the target modality; or a rejection where no positive survives."""
    if not row["positives"]:
        return _rejected("no positive", "neither its qrels file nor pos_cand_list gives it a relevant candidate")
    positives, places = _existing(row["positives"], known)
    negatives, _ = _existing(row["negatives"], known)
    if not positives:
        return _rejected("dangling positives", f"no pool holds {', '.join(row['positives'][:3])} in usable form")
    return {
        "positives": positives,
        "negatives": negatives,
        "target_modality": MODALITIES[known.modalities[places[0]]],
        "dangling": len(row["positives"]) + len(row["negatives"]) - len(positives) - len(negatives),
    }


def _existing(dids: list[str], known: Candidates) -> tuple[list[str], np.ndarray]:
    places = known.places(hash_ids(dids))
    return [did for did, place in zip(dids, places, strict=True) if place >= 0], places[places >= 0]


def _rejected(reason: str, detail: str) -> dict[str, Any]:
    return {"reason": reason, "detail": detail}
