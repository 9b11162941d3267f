"""Checks every distinct picture of a corpus once, in parallel, and writes it once however many paths lead to it.

Whether a picture is new is only known when it has been checked, and its bytes must not travel to be compared. So one
small actor keeps the ledger: a task reports the ids of a batch and is told which of them it may write. The first path
that claims a picture owns it, and claiming again is harmless: a task that Ray runs a second time loses nothing. The
ledger holds about 200 bytes for a picture, and a line for each rejected one.
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


class Ledger:
    """Which pictures are written, what each path stands for, and which pictures were refused."""

    def __init__(self) -> None:
        self.owners: dict[bytes, int] = {}
        self.verdicts: dict[int, tuple[bytes, str]] = {}
        self.rejects: dict[str, tuple[str, str]] = {}

    def record(self, good: list[tuple[str, str]], bad: list[tuple[str, str, str]]) -> list[bool]:
        """Takes (path, image id) of good pictures and (path, reason, detail) of bad ones.

        Returns for each good one whether the caller is to write it.
        """
        for path, reason, detail in bad:
            self.rejects[path] = (reason, detail)
            self.verdicts[hash64(path)] = (b"", reason)
        mine = []
        for path, image_id in good:
            key = hash64(path)
            self.verdicts[key] = (image_id.encode(), "")
            mine.append(self.owners.setdefault(bytes.fromhex(image_id), key) == key)
        return mine

    def conclude(self) -> tuple[ImageVerdicts, int, pa.Table]:
        """(verdicts of all paths, how many pictures are kept, the rejected ones as `REJECTS`)."""
        paths = np.array(sorted(self.verdicts), dtype=np.uint64)
        found = [self.verdicts[int(path)] for path in paths]
        words = ("", *sorted({reason for _, reason in found if reason}))
        verdicts = ImageVerdicts(
            paths=paths,
            ids=np.array([image_id for image_id, _ in found], dtype="S32"),
            reasons=np.array([words.index(reason) for _, reason in found], dtype=np.uint8),
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
