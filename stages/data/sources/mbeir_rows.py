"""One line of an M-BEIR file → one row, or the reason why not.

Published files and the dataset's own card disagree in places: lists hold dids or objects with a `did`, modalities are
written "image,text" or "text,image". Both forms are read, one is written on.
"""

from typing import Any

import pyarrow as pa

from stages.data.schemas import RAW_CANDIDATES, RAW_QUERIES
from stages.data.sources.chunks import FileChunk, lines, position
from stages.data.sources.fields import BadField, modality, normalise, parse, string
from stages.data.sources.mbeir import relevant
from stages.data.sources.remote import Place

TASKS = range(9)


def read_chunk(root: Place, number: int, chunk: FileChunk, datasets: dict[int, str]) -> pa.Table:
    """All rows of chunk `number`, in `RAW_CANDIDATES` or `RAW_QUERIES`; bad lines have a reason and what is known.

    Of a bad query that is at least what the file's name says: which split and set it is missing from.
    """
    read, id_field, schema = (candidate, "did", RAW_CANDIDATES) if chunk.source.pool else (query, "qid", RAW_QUERIES)
    named = {name: getattr(chunk.source, name) for name in ("split", "dataset", "task_id")}
    rows = []
    for line_number, line in lines(root, chunk):
        row = {"position": position(number, line_number - chunk.first_line)}
        row |= {"source": f"{chunk.source.path}:{line_number}"} | (named if schema is RAW_QUERIES else {})
        try:
            fields = parse(line)
            row[id_field] = fields.get(id_field) if isinstance(fields.get(id_field), str) else None
            row |= read(fields, chunk)
        except BadField as error:
            row |= {"reason": error.reason, "detail": error.detail}
        rows.append(row)
    if chunk.source.pool is None:
        _finish_queries(root, chunk, rows, datasets)
    return pa.Table.from_pylist(rows, schema)


def candidate(fields: dict[str, Any], chunk: FileChunk) -> dict[str, Any]:
    """The columns of a candidate. Raises BadField."""
    did, dataset_id = identity(fields, "did")
    kind = modality(fields.get("modality"))
    text, image_path = content(kind, fields, "txt", "img_path")
    return {
        "did": did,
        "dataset_id": dataset_id,
        "modality": kind,
        "text": text,
        "image_path": image_path,
        "pool": chunk.source.pool,
    }


def query(fields: dict[str, Any], chunk: FileChunk) -> dict[str, Any]:
    """The columns of a query; its positives are those of the row. Raises BadField."""
    qid, dataset_id = identity(fields, "qid")
    kind = modality(fields.get("query_modality"))
    text, image_path = content(kind, fields, "query_txt", "query_img_path")
    return {
        "qid": qid,
        "split": chunk.source.split,
        "dataset": chunk.source.dataset,
        "dataset_id": dataset_id,
        "task_id": task(fields, chunk.source.task_id),
        "modality": kind,
        "text": text,
        "image_path": image_path,
        "positives": dids(fields, "pos_cand_list"),
        "negatives": dids(fields, "neg_cand_list"),
    }


def identity(fields: dict[str, Any], name: str) -> tuple[str, int]:
    """An id "dataset:number" and the number of its data set. Raises BadField."""
    value = fields.get(name)
    if value is None or value == "":
        raise BadField("missing id", f"{name} is missing")
    prefix, colon, rest = str(value).partition(":")
    if not isinstance(value, str) or not colon or not rest or not prefix.isascii() or not prefix.isdigit():
        raise BadField("bad id", f"{name} must be a string like '20:17', this is {value!r}")
    if int(prefix) >= 2**31:
        raise BadField("bad id", f"{name} {value!r} has a data set number beyond 32 bits")
    return value, int(prefix)


def content(kind: str, fields: dict[str, Any], text_name: str, image_name: str) -> tuple[str | None, str | None]:
    """(normalised text, image path) as far as the modality names them. Raises BadField where one is missing."""
    text = normalise(string(fields, text_name)) if "text" in kind else None
    image_path = string(fields, image_name) if "image" in kind else None
    if "text" in kind and not text:
        raise BadField("missing text", f"modality is {kind!r}, but {text_name} is empty")
    if "image" in kind and not image_path:
        raise BadField("missing image", f"modality is {kind!r}, but {image_name} is empty")
    return text, image_path


def task(fields: dict[str, Any], expected: int | None) -> int:
    """The task number, which the name of a val or test file fixes. Raises BadField."""
    value = fields.get("task_id")
    if isinstance(value, bool) or not isinstance(value, int) or value not in TASKS:
        raise BadField("bad task", f"task_id must be a number from 0 to 8, this is {value!r}")
    if expected is not None and value != expected:
        raise BadField("bad task", f"task_id is {value}, the file's name says {expected}")
    return value


def dids(fields: dict[str, Any], name: str) -> list[str]:
    """The dids of a list of strings or of objects with a `did`, each once, in order. Raises BadField."""
    value = fields.get(name)
    value = [] if value is None else value
    if not isinstance(value, list):
        raise BadField("bad list", f"{name} must be a list, this is {type(value).__name__}")
    found = [item.get("did") if isinstance(item, dict) else item for item in value]
    if not all(isinstance(did, str) for did in found):
        raise BadField("bad list", f"{name} must hold dids or objects with a did")
    return list(dict.fromkeys(found))


def _finish_queries(root: Place, chunk: FileChunk, rows: list[dict[str, Any]], datasets: dict[int, str]) -> None:
    """Takes val and test positives from the qrels file where there is one, and names the data set."""
    good = [row for row in rows if "reason" not in row]
    if chunk.source.qrels is not None:
        found = relevant(root, chunk.source.qrels, {row["qid"] for row in good})
        for row in good:
            row["positives"] = found.get(row["qid"], [])
    for row in good:
        row["dataset"] = row["dataset"] or datasets.get(row["dataset_id"], f"dataset{row['dataset_id']}")
