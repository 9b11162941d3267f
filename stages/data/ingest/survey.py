"""What must be known about all rows at once, as sorted arrays: who came first, what survives, what is in which pool.

Duplicates, dangling ids and pool membership are questions about the whole corpus. A shuffle (`groupby`) would answer
them by moving every row to the process that owns its key, through actors that starve on small machines. Instead every
row leaves a few numbers behind, one task sorts them, and a second pass over the rows looks them up in shared memory.
Nothing else is ever held for the whole corpus. Bytes: 30 for a candidate (M-BEIR's 5.6 million: 170 MB a node),
16 for a query, 16 for the path of an image, and 25 for its verdict.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.keys import NOTHING, hash_ids, locate
from stages.data.modalities import MODALITIES

NUMBERS = pa.schema(
    [
        ("key", pa.uint64()),  # of the did, or of split and qid
        ("position", pa.int64()),
        ("path", pa.uint64()),  # of the image path
        ("content", pa.uint64()),  # the rest is 0 for queries
        ("modality", pa.uint8()),
        ("pool", pa.int32()),
    ]
)
"""What a row leaves behind."""
WORD = 64


@dataclass(frozen=True)
class Firsts:
    """For each distinct key the position of its first row. Both arrays [N], sorted by key."""

    keys: np.ndarray  # uint64
    positions: np.ndarray  # int64

    @classmethod
    def of(cls, keys: np.ndarray, positions: np.ndarray) -> "Firsts":
        """From the keys of all rows, in any order; rows without a key are left out."""
        present = keys != NOTHING
        keys, positions = keys[present], positions[present]
        order = np.lexsort((positions, keys))
        keys, positions = keys[order], positions[order]
        starts = _starts(keys)
        return cls(keys[starts], positions[starts])

    def is_first(self, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """bool [M]: whether each of M rows is the first with its key."""
        places = locate(keys, self.keys)
        return (places >= 0) & (self.positions[places] == positions) if len(self.keys) else np.zeros(len(keys), bool)


@dataclass(frozen=True)
class ImageVerdicts:
    """For each distinct image path its image, or why it has none. Arrays [N], sorted by the hash of the path."""

    paths: np.ndarray  # uint64
    ids: np.ndarray  # V16: the image id, zeros where rejected
    reasons: np.ndarray  # uint8: index into `words`, 0 where good
    words: tuple[str, ...] = ("",)

    def look_up(self, paths: np.ndarray) -> tuple[list[str | None], list[str | None]]:
        """(image ids, reasons) of M paths; both None for a row without a path."""
        places = locate(paths, self.paths)
        ids: list[str | None] = [None] * len(paths)
        reasons: list[str | None] = [None] * len(paths)
        for row in np.flatnonzero(paths != NOTHING):
            place = places[row]
            if self.reasons[place]:
                reasons[row] = self.words[self.reasons[place]]
            else:
                ids[row] = self.ids[place].tobytes().hex()
        return ids, reasons


@dataclass(frozen=True)
class Candidates:
    """All distinct candidates, by the first row of each. Arrays [N], sorted by the hash of the did."""

    firsts: Firsts
    contents: np.ndarray  # uint64: hash of modality, text and image path
    modalities: np.ndarray  # uint8: index into MODALITIES
    pool_sets: np.ndarray  # int32: index into `sets`
    alive: np.ndarray  # bool: false where the image was rejected
    sets: tuple[tuple[str, ...], ...]

    def places(self, dids: np.ndarray) -> np.ndarray:
        """Places int64 [M] of hashed dids that exist and survive; -1 for the others."""
        places = locate(dids, self.firsts.keys)
        return np.where((places >= 0) & self.alive[places], places, -1) if len(self.alive) else places

    def pool_sizes(self) -> dict[str, int]:
        """Surviving candidates of each pool."""
        counts = np.bincount(self.pool_sets[self.alive], minlength=len(self.sets))
        sizes = {pool: 0 for pools in self.sets for pool in pools}
        for pools, count in zip(self.sets, counts, strict=True):
            for pool in pools:
                sizes[pool] += int(count)
        return dict(sorted(sizes.items()))


def candidate_numbers(table: pa.Table, pools: list[str]) -> pa.Table:
    """What the good rows of a `RAW_CANDIDATES` table leave behind, `pools` being the names of all pools."""
    table = good(table)
    codes = {pool: code for code, pool in enumerate(pools)}
    return pa.table(
        {
            "key": hash_ids(table["did"].to_pylist()),
            "position": table["position"].to_numpy(),
            "path": hash_ids(table["image_path"].to_pylist()),
            "content": content_hashes(table),
            "modality": np.array([MODALITIES.index(kind) for kind in table["modality"].to_pylist()], dtype=np.uint8),
            "pool": np.array([codes[pool] for pool in table["pool"].to_pylist()], dtype=np.int32),
        },
        schema=NUMBERS,
    )


def query_numbers(table: pa.Table) -> pa.Table:
    """What the good rows of a `RAW_QUERIES` table leave behind."""
    table = good(table)
    return pa.table(
        {
            "key": query_keys(table),
            "position": table["position"].to_numpy(),
            "path": hash_ids(table["image_path"].to_pylist()),
            **{name: np.zeros(len(table), dtype=np.int64) for name in ("content", "modality", "pool")},
        },
        schema=NUMBERS,
    )


def survey_candidates(numbers: pa.Table, pools: list[str], unions: dict[str, set[str]], bad: np.ndarray) -> Candidates:
    """Sorts the numbers of all candidate rows. `bad` are the hashed paths of rejected images; `unions` are pools to
    be made of others (`mbeir.implied_unions`)."""
    keys, positions = numbers["key"].to_numpy(), numbers["position"].to_numpy()
    order = np.lexsort((positions, keys))
    starts = _starts(keys[order])
    first = order[starts]
    membership, sets = _pool_sets(numbers["pool"].to_numpy()[order], starts, pools)
    return Candidates(
        firsts=Firsts(keys[first], positions[first]),
        contents=numbers["content"].to_numpy()[first],
        modalities=numbers["modality"].to_numpy()[first],
        pool_sets=membership,
        alive=~np.isin(numbers["path"].to_numpy()[first], bad),
        sets=tuple(_with_unions(names, unions) for names in sets),
    )


def good(table: pa.Table) -> pa.Table:
    """The rows that were read without a reason to reject them."""
    return table.filter(pc.is_null(table["reason"]))


def content_hashes(table: pa.Table) -> np.ndarray:
    """uint64 [N] over everything that makes a candidate what it is; equal for the same candidate in two pools."""
    columns = (table[name].to_pylist() for name in ("modality", "text", "image_path"))
    return hash_ids(f"{kind}\0{text or ''}\0{path or ''}" for kind, text, path in zip(*columns, strict=True))


def query_keys(table: pa.Table) -> np.ndarray:
    """uint64 [N]: a qid is unique within its split."""
    columns = table["split"].to_pylist(), table["qid"].to_pylist()
    return hash_ids(f"{split}\0{qid}" for split, qid in zip(*columns, strict=True))


def _starts(sorted_keys: np.ndarray) -> np.ndarray:
    """Where each run of equal keys begins."""
    if len(sorted_keys) == 0:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))


def _pool_sets(codes: np.ndarray, starts: np.ndarray, pools: list[str]) -> tuple[np.ndarray, list[list[str]]]:
    """The set of pools of each run of rows: (index int32 [N] into the sets, the sets).

    A set is a row of bits, 64 pools to a word, so that uniting them is one `bitwise_or` over each run.
    """
    if len(starts) == 0:
        return np.empty(0, dtype=np.int32), []
    words = []
    for base in range(0, len(pools), WORD):
        inside = (codes >= base) & (codes < base + WORD)
        bits = np.where(inside, np.uint64(1) << (codes - base).clip(0, WORD - 1).astype(np.uint64), np.uint64(0))
        words.append(np.bitwise_or.reduceat(bits, starts))
    masks, membership = np.unique(np.stack(words, axis=1), axis=0, return_inverse=True)
    sets = [[pool for code, pool in enumerate(pools) if int(mask[code // WORD]) >> code % WORD & 1] for mask in masks]
    return membership.reshape(-1).astype(np.int32), sets


def _with_unions(names: list[str], unions: dict[str, set[str]]) -> tuple[str, ...]:
    return tuple(sorted({*names, *(union for union, members in unions.items() if members.intersection(names))}))
