"""What things are known by: content ids, and 64-bit hashes of ids and paths with lookups in sorted arrays of them.

Ids of a corpus as Python strings in a set cost about 100 bytes each in every process that needs them. Their hashes in
one sorted array cost 8, live once per node in shared memory, and answer a whole batch at a time. Two of n keys
collide with probability n²/2⁶⁵: about 4 in a million for 12 million keys. Where a wrong answer would do harm (a table
row), the key itself is compared as well.
"""

from collections.abc import Iterable
from hashlib import blake2b, sha256
from posixpath import normpath
from unicodedata import normalize

import numpy as np

NOTHING = 0
"""Stands for a key that is absent (a row without an image)."""


def content_id(text: str | None, image_id: str | None) -> str:
    """The first 32 hex digits of the SHA-256 of a candidate's text and image."""
    return sha256(f"{text or ''}\0{image_id or ''}".encode()).hexdigest()[:32]


def seen(text: str | None, image_path: str | None) -> tuple[str, str]:
    """A query's text without its kind of blanks and composed letters, its path without detours: nobody sees those."""
    return " ".join(normalize("NFC", text or "").split()), normpath(image_path) if image_path else ""


def hash64(key: str) -> int:
    """The hash of one key; never `NOTHING`."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def hash_ids(keys: Iterable[str | None]) -> np.ndarray:
    """uint64 hashes [N] of N keys; `NOTHING` for None."""
    return np.fromiter((NOTHING if key is None else hash64(key) for key in keys), dtype=np.uint64)


def locate(hashes: np.ndarray, sorted_hashes: np.ndarray) -> np.ndarray:
    """The place of each of `hashes` [N] in `sorted_hashes` [M] as int64 [N]; -1 where it is not."""
    if len(sorted_hashes) == 0:
        return np.full(len(hashes), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    return np.where(sorted_hashes[places] == hashes, places, -1)
