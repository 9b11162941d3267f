"""Checks every distinct picture of a corpus once, in parallel, and writes it once however many paths lead to it.

Whether a picture is new is only known when it has been checked, and its bytes must not travel to be compared. So one
small actor keeps the ledger: a task reports the ids of a batch and is told which of them it may write. The first path
that claims a picture owns it, and claiming again is harmless: a task that Ray runs a second time loses nothing. The
ledger holds about 200 bytes for a picture, 25 for a path, and a line for each rejected one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.images import Checked, ImageRejected, Limits, load
from stages.data.keys import hash64, hash_ids
from stages.data.schemas import IMAGES, REJECTS
from stages.data.survey import Firsts, ImageVerdicts

PATHS = pa.schema([("path", pa.string())])
VERDICTS = pa.schema(
    [("path", pa.uint64()), ("id", pa.binary(16)), ("reason", pa.dictionary(pa.int32(), pa.string()))]
)


class Ledger:
    """Which pictures are written, what each path stands for, and which pictures were refused."""

    def __init__(self) -> None:
        self.owners: dict[bytes, int] = {}
        self.blocks: list[pa.Table] = []
        self.rejects: dict[str, tuple[str, str]] = {}

    def record(self, good: list[tuple[str, str]], bad: list[tuple[str, str, str]]) -> list[bool]:
        """Takes (path, image id) of good pictures and (path, reason, detail) of bad ones.

        Returns for each good one whether the caller is to write it.
        """
        paths = [hash64(path) for path, *_ in (*good, *bad)]
        ids = [bytes.fromhex(image_id) for _, image_id in good]
        reasons = [""] * len(good) + [reason for _, reason, _ in bad]
        columns = [paths, [*ids, *[bytes(16)] * len(bad)], pa.array(reasons).dictionary_encode()]
        self.blocks.append(pa.table(columns, schema=VERDICTS))
        self.rejects |= {path: (reason, detail) for path, reason, detail in bad}
        return [self.owners.setdefault(one, path) == path for one, path in zip(ids, paths, strict=False)]

    def conclude(self) -> tuple[ImageVerdicts, int, pa.Table]:
        """(verdicts of all paths, how many pictures are kept, the rejected ones as `REJECTS`)."""
        table = pa.concat_tables([VERDICTS.empty_table(), *self.blocks]).unify_dictionaries().combine_chunks()
        paths, first = np.unique(table["path"].to_numpy(), return_index=True)
        table = table.take(first)
        words = ("", *sorted({reason for reason, _ in self.rejects.values()}))
        verdicts = ImageVerdicts(
            paths=paths,
            ids=np.array(table["id"].to_pylist(), dtype="V16"),
            reasons=np.array([words.index(reason) for reason in table["reason"].to_pylist()], dtype=np.uint8),
            words=words,
        )
        rows = [
            {"kind": "image", "id": None, "source": path, "reason": reason, "detail": detail}
            for path, (reason, detail) in sorted(self.rejects.items())
        ]
        return verdicts, len(self.owners), pa.Table.from_pylist(rows, REJECTS)


def new_paths(table: pa.Table, firsts: Firsts) -> pa.Table:
    """The image paths that appear for the first time in this table of read rows; see `Firsts`."""
    table = table.filter(pc.is_null(table["reason"]))
    first = firsts.is_first(hash_ids(table["image_path"].to_pylist()), table["position"].to_numpy())
    return pa.table([table["image_path"].filter(pa.array(first))], schema=PATHS)


def check_pictures(table: pa.Table, root: Path, limits: Limits, record: Any) -> pa.Table:
    """The pictures of a `PATHS` table that nobody wrote yet, as `IMAGES`; `record` is `Ledger.record`."""
    good: list[tuple[str, Checked]] = []
    bad: list[tuple[str, str, str]] = []
    for path in table["path"].to_pylist():
        try:
            good.append((path, load(root, path, limits)))
        except ImageRejected as error:
            bad.append((path, error.reason, error.detail))
    mine = record([(path, picture.image_id) for path, picture in good], bad)
    return pa.Table.from_pylist(
        [vars(picture) for (_, picture), write in zip(good, mine, strict=True) if write], IMAGES
    )
