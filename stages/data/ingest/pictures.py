"""Checks every distinct picture of a corpus once, in parallel, and writes it once however many paths lead to it.

A task writes its pictures as one file, whole or not at all, and what became of each path into that file's metadata.
So a run that was killed is resumed from the files alone: the paths that they list are done.

Whether a picture is new is only known when it has been checked, and its bytes must not travel to be compared. So one
small actor keeps the ledger: a task reports the ids of a batch and learns which of them it may write. The first path
that claims a picture owns it, and claiming again is harmless: a task that Ray runs a second time loses nothing. The
ledger holds about 200 bytes for a picture, 25 for a path, and a line for each rejected one.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract.context import Attempt
from stages.data.images import Checked, ImageLimits, ImageRejected, load
from stages.data.ingest.survey import Firsts, ImageVerdicts
from stages.data.keys import hash64, hash_ids, locate
from stages.data.schemas import IMAGES, REJECTS
from stages.data.sources.remote import Place

FATES = b"paths"  # the key of a file's metadata
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
        self._note(good, bad)
        return [self.owners.setdefault(bytes.fromhex(one), hash64(path)) == hash64(path) for path, one in good]

    def _note(self, good: list[tuple[str, str]], bad: list[tuple[str, str, str]]) -> None:
        paths = [hash64(path) for path, *_ in (*good, *bad)]
        ids = [bytes.fromhex(image_id) for _, image_id in good]
        reasons = [""] * len(good) + [reason for _, reason, _ in bad]
        columns = [paths, [*ids, *[bytes(16)] * len(bad)], pa.array(reasons).dictionary_encode()]
        self.blocks.append(pa.table(columns, schema=VERDICTS))
        self.rejects |= {path: (reason, detail) for path, reason, detail in bad}

    def take_over(self, files: list[str], filesystem: Any) -> np.ndarray:
        """Learns from files of a killed run; the hashes of the paths that they list, sorted."""
        for file in files:
            metadata = pq.read_schema(file, filesystem=filesystem).metadata or {}
            if FATES not in metadata:  # the file of a corpus without pictures
                continue
            fates = json.loads(metadata[FATES])
            good = [(path, image_id) for path, image_id, _ in fates["good"]]
            for path, image_id, mine in fates["good"]:
                if mine:
                    self.owners[bytes.fromhex(image_id)] = hash64(path)
            self._note(good, [tuple(one) for one in fates["bad"]])
        return np.unique(
            np.concatenate([np.empty(0, np.uint64), *(block["path"].to_numpy() for block in self.blocks)])
        )

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


def new_paths(table: pa.Table, firsts: Firsts, done: np.ndarray) -> pa.Table:
    """The image paths that appear for the first time in this table of read rows, see `Firsts`; not those of `done`."""
    table = table.filter(pc.is_null(table["reason"]))
    hashes = hash_ids(table["image_path"].to_pylist())
    first = firsts.is_first(hashes, table["position"].to_numpy()) & (locate(hashes, done) < 0)
    return pa.table([table["image_path"].filter(pa.array(first))], schema=PATHS)


def write_pictures(table: pa.Table, root: Place, limits: ImageLimits, record: Any, output: Attempt) -> int:
    """Checks the pictures of a `PATHS` table and writes those that nobody wrote yet; returns how many.

    `record` is `Ledger.record`. The file is named after the first path, which is in no other table.
    """
    if not table.num_rows:
        return 0
    pictures = check_pictures(table, root, limits, record)
    with output.open(f"images/{hash64(table['path'][0].as_py()):016x}.parquet") as file:
        pq.write_table(
            pictures, file, use_dictionary=False, compression="NONE"
        )  # encoded pictures give way to neither
    return pictures.num_rows


def check_pictures(table: pa.Table, root: Place, limits: ImageLimits, record: Any) -> pa.Table:
    """The pictures of a `PATHS` table that nobody wrote yet, as `IMAGES`; what became of each path as metadata."""
    good: list[tuple[str, Checked]] = []
    bad: list[tuple[str, str, str]] = []
    for path in table["path"].to_pylist():
        try:
            good.append((path, load(root, path, limits)))
        except ImageRejected as error:
            bad.append((path, error.reason, error.detail))
    mine = record([(path, picture.image_id) for path, picture in good], bad)
    fates = {
        "good": [(path, picture.image_id, write) for (path, picture), write in zip(good, mine, strict=True)],
        "bad": bad,
    }
    rows = [vars(picture) for (_, picture), write in zip(good, mine, strict=True) if write]
    return pa.Table.from_pylist(rows, IMAGES.with_metadata({FATES: json.dumps(fates).encode()}))
