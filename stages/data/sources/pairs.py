"""A user's own pairs: each record is a query with the candidates that answer it, and perhaps some that do not.

    {"id": "q7", "query": {"text": "…", "image": "a.jpg"}, "positives": [{"id": "p1", "text": "…", "image": "b.jpg"}],
     "negatives": [{"text": "…"}], "split": "train", "task": "shoes"}

Everything may be left out but one of text and image, and one positive. A table has the columns `query_text`,
`query_image`, `positive_id`, `positive_text`, `positive_image`, the same for `negative`, and `id`, `split`, `task`; or
those of the NLI files that text encoders are trained on (`NLI`).
From here on a pair is what M-BEIR calls a query: all candidates of a task are its pool, in every split.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from stages.contract.context import InputError
from stages.data.instructions import PAIRS, dataset_number
from stages.data.keys import content_id, hash64, seen
from stages.data.schemas import RAW_CANDIDATES, RAW_QUERIES, SPLITS
from stages.data.sources.chunks import FileChunk, lines, position
from stages.data.sources.columns import names_of, plain, rename
from stages.data.sources.fields import BadField
from stages.data.sources.records import Records, check_cells, content_of, id_of, source_line

LONGEST_TASK = 64
TASK_IDS = {
    ("text", "image"): 0,
    ("text", "text"): 1,
    ("text", "image,text"): 2,
    ("image", "text"): 3,
    ("image", "image"): 4,
    ("image", "image,text"): 5,
    ("image,text", "text"): 6,
    ("image,text", "image"): 7,
    ("image,text", "image,text"): 8,
}
"""M-BEIR's number of each pair of modalities."""
NLI = {
    **dict.fromkeys(("anchor", "sentence1", "sent0"), "query_text"),
    **dict.fromkeys(("positive", "sentence2", "sent1"), "positive_text"),
    **dict.fromkeys(("negative", "hard_neg"), "negative_text"),
}
"""What published tables of texts call their columns: sentence-transformers' all-nli, SimCSE's nli_for_simcse.csv."""
OTHERS = ("id", "split", "task")
COLUMNS = {
    **names_of(f"{part}_{name}" for part in ("query", "positive", "negative") for name in ("id", "text", "image")),
    **names_of(OTHERS),
    **NLI,
}
"""What the columns of a table are called here, see `columns.names_of`."""
SHARES = ("val", "test", *["train"] * 8)  # of rows that name no split
Shape = Callable[[dict[str, Any]], dict[str, Any]]
"""What makes the parts of a pair of a line's fields: `nested`, or `unlabelled.as_pair`. It may raise BadField."""


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """A table's flat columns as a record has them; a record as it is. Raises BadField."""
    check_cells(fields)
    if "query" in fields or "positives" in fields:
        return fields
    parts: dict[str, dict[str, Any]] = {"query": {}, "positive": {}, "negative": {}}
    for part, found in parts.items():
        found |= {name: fields[f"{part}_{name}"] for name in ("id", "text", "image") if f"{part}_{name}" in fields}
    rest = {name: fields[name] for name in ("id", "split", "task") if name in fields}
    lists = {f"{name}s": [parts[name]] for name in ("positive", "negative") if parts[name]}
    return {**rest, "query": parts["query"], **lists}


def read_queries(records: Records, number: int, chunk: FileChunk, shape: Shape = nested) -> pa.Table:
    """All rows of chunk `number` in RAW_QUERIES; bad ones have a reason."""
    rows = []
    for place, line_number, line in _placed(records, number, chunk):
        row: dict[str, Any] = {"position": place}
        try:
            fields = records.read(chunk.source, line)
            row["qid"] = fields["id"] if isinstance(fields.get("id"), str) else None
            row |= query(shape(fields), f"{records.name(chunk.source)}:{line_number}")
        except BadField as error:
            row |= {"reason": error.reason, "detail": error.detail}
        rows.append(row | {"source": f"{records.name(chunk.source)}:{line_number}"})
    return pa.Table.from_pylist(rows, RAW_QUERIES)


def read_candidates(records: Records, number: int, chunk: FileChunk, shape: Shape = nested) -> pa.Table:
    """The candidates of all good rows of chunk `number` in RAW_CANDIDATES, each as often as it is given."""
    rows: list[dict[str, Any]] = []
    for _, line_number, line in _placed(records, number, chunk):
        try:
            given = shape(records.read(chunk.source, line))
            asked = query(given, "")
        except BadField:  # it is rejected as a query
            continue
        for name in ("positives", "negatives"):
            for one in given.get(name) or []:
                common = {"dataset_id": asked["dataset_id"], "pool": pool_name(asked["dataset"], asked["task_id"])}
                source = {"source": f"{records.name(chunk.source)}:{line_number}"}
                rows.append({"position": position(number, len(rows)), **source, **common, **candidate(one)})
    return pa.Table.from_pylist(rows, RAW_CANDIDATES)


def query(fields: dict[str, Any], default_id: str) -> dict[str, Any]:
    """The columns of a query, of a record as `nested` gives it. Raises BadField."""
    kind, text, image = content_of(fields.get("query"), "query")
    positives, negatives = (_candidates(fields, name) for name in ("positives", "negatives"))
    answers = dict.fromkeys(one["did"] for one in positives)
    if not positives:
        raise BadField("no positive", "positives must hold at least one candidate")
    dataset, split = _dataset(fields), _split(fields, text, image)
    task_id = TASK_IDS[kind, positives[0]["modality"]]
    return {
        "qid": own_id(fields, "query") or default_id,
        "split": split,
        "dataset": dataset,
        "dataset_id": dataset_number(dataset),
        "task_id": task_id,
        "modality": kind,
        "text": text,
        "image_path": image,
        "positives": list(answers),
        "negatives": list(dict.fromkeys(one["did"] for one in negatives if one["did"] not in answers)),
        "pool": None if split == "train" else pool_name(dataset, task_id),
    }


def candidate(fields: Any) -> dict[str, Any]:
    """The columns of a candidate that its record names; without an id it is known by its content. Raises BadField."""
    kind, text, image = content_of(fields, "a candidate")
    did = own_id(fields, "a candidate") or content_id(text, image)[:16]
    return {"did": did, "modality": kind, "text": text, "image_path": image}


def check_columns(columns: Sequence[str], place: str) -> None:
    """Raises InputError where a table at `place` lacks a column, has one twice, or may say what is no positive.

    Some files of NLI have a column of labels, by which only some of their rows are pairs.
    """
    written = [plain(name) for name in columns]
    known = set(rename(columns, COLUMNS))
    strange = [name for name in written if name not in NLI and name not in OTHERS] if set(written) & set(NLI) else []
    whole = all({f"{part}_text", f"{part}_image"} & known for part in ("query", "positive"))
    if strange or len(known) < len(columns) or not whole:
        raise InputError(
            f"{place} has the columns {', '.join(columns)}; pairs are query_text,positive_text[,negative_text],"
            " anchor,positive[,negative], sentence1,sentence2[,hard_neg] or sent0,sent1[,hard_neg]"
        )


def pool_name(dataset: str, task_id: int) -> str:
    """The pool of a task."""
    return f"{dataset}_task{task_id}"


def own_id(fields: dict[str, Any], what: str) -> str | None:
    """The id that a record gives itself. Raises BadField where run files could not hold it."""
    own = id_of(fields, what)
    if own is not None and re.search(r"\s", own):
        raise BadField("bad id", f"the id of {what} must hold no spaces, this is {own!r}")
    return own


def _placed(records: Records, number: int, chunk: FileChunk) -> Iterator[tuple[int, int, bytes]]:
    """(position, the line number for a person, line) of the lines of a chunk."""
    for line_number, line in lines(records.root, chunk):
        yield position(number, line_number - chunk.first_line), source_line(line, line_number), line


def _candidates(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = fields.get(name) or []
    if not isinstance(value, list):
        raise BadField("bad list", f"{name} must be a list of candidates, this is {type(value).__name__}")
    return [candidate(one) for one in value]


def _dataset(fields: dict[str, Any]) -> str:
    value = fields.get("task")
    if value is None or value == "":
        return PAIRS
    name = " ".join(str(value).split())
    known = isinstance(value, str | int) and not isinstance(value, bool)
    if not known or not name.isprintable() or not 0 < len(name) <= LONGEST_TASK:
        raise BadField("bad task", f"task must be a text of 1 to {LONGEST_TASK} signs, this is {value!r:.100}")
    return name


def _split(fields: dict[str, Any], text: str | None, image: str | None) -> str:
    """The split that the row names; else by its query, so that the same query is always in the same one."""
    value = fields.get("split")
    if value is None or value == "":
        return SHARES[hash64("\0".join(seen(text, image))) % len(SHARES)]
    if value not in SPLITS:
        raise BadField("bad split", f"split must be one of {', '.join(SPLITS)}, this is {value!r}")
    return value
