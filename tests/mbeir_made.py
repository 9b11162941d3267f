"""Writes M-BEIR's layout in any size: all sixteen sets in their published proportions, with what is odd about them.

pools       one for each set, MSCOCO's for test alone; unions of train, val and test besides, each did once
shared      every tenth candidate of InfoSeek is one of OVEN's, under OVEN's did, in the pools of both
positives   InfoSeek's may be OVEN's; OVEN and InfoSeek have several; some files list objects and some dids
pictures    small, in the parts of a tar file, as published; a query's own may be among the candidates
"""

import gzip
import io
import json
import random
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from tests.bench.published import CANDIDATES, SETS, PublishedSet

SPLITS = ("train", "val", "test")
LEAST_CANDIDATES, LEAST_QUERIES = 4, 2
SIDE, BLOCKS = 32, 4
"""Pixels of a picture's side, and of the pattern that it is enlarged from."""
PART_BYTES = 2**28
PER_FOLDER = 1000
PASSAGE, CAPTION = 60, 12
"""Words of an article's passage, and of any other text."""
PASSAGES = ("webqa", "oven", "infoseek")
POSITIVES = {"oven": 4, "infoseek": 4}
NEGATIVES = {"webqa": 2, "edis": 2}
TESTED_ALONE, LENDER, BORROWER, EVERY = "mscoco", "oven", "infoseek", 10
INSTRUCTIONS = "instructions/query_instructions.tsv"
HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"
WORDS = [start + end for start in "bcdfgklmnprstv" for end in ("ale", "ent", "ire", "our", "um", "ya")]


def write_mbeir(root: Path, candidates: int, say: Callable[[str], None] = lambda line: None) -> dict[str, int]:
    """Writes a corpus of about `candidates` test candidates.

    Returns:
        How many test candidates, pictures, queries of each split, and lines of all files but qrels there are.
    """
    with Corpus(root, candidates / CANDIDATES) as corpus:
        for one in SETS:
            corpus.add(one)
            say(f"{one.name}: {corpus.counts['candidates']:,} candidates, {corpus.counts['pictures']:,} pictures")
    return corpus.counts


def unpack(root: Path) -> None:
    """The pictures out of the parts, as M-BEIR's card tells its users to."""
    command = "cat mbeir_images.tar.gz.part-* | tar --extract --gzip --file -"
    subprocess.run(["sh", "-c", command], cwd=root, check=True)


@dataclass(frozen=True)
class Pool:
    """The test candidates of a set: their dids, and the sets whose they are."""

    dids: list[str]
    owners: list[PublishedSet]


class Corpus(ExitStack):
    """The files being written; what a row holds depends on its set and its id alone."""

    def __init__(self, root: Path, share: float) -> None:
        super().__init__()
        self.root, self.share = root, share
        self.counts = dict.fromkeys(("candidates", "pictures", *SPLITS, "lines"), 0)
        self.numbers: dict[str, int] = {}
        self.lent: dict[str, tuple[PublishedSet, list[str]]] = {}
        """By target: OVEN's set and its dids, of which InfoSeek borrows."""
        self.asked: set[str] = set()
        self.files: dict[str, IO[str]] = {}
        root.mkdir(parents=True, exist_ok=True)
        self.parts = self.enter_context(Parts(root / "mbeir_images.tar.gz.part"))
        packed = self.enter_context(gzip.open(self.parts, "wb", compresslevel=1))  # noqa: SIM115 - closed with the corpus
        self.tar = self.enter_context(tarfile.open(mode="w|", fileobj=packed))  # noqa: SIM115 - likewise
        self._write(INSTRUCTIONS, HEADER)

    def add(self, one: PublishedSet) -> None:
        """Writes a set's pool, queries, qrels and instruction."""
        columns = one.query, one.target, one.dataset, str(one.number), "Find it.", f"Find it in {one.dataset}."
        self._write(INSTRUCTIONS, "\t".join(columns) + "\n")
        pool = self._add_pool(one)
        for split in SPLITS:
            self._add_queries(one, split, pool)

    def _add_pool(self, one: PublishedSet) -> Pool:
        local = f"{one.name}_test" if one.dataset == TESTED_ALONE else one.name
        lender, lent = self.lent.get(one.target, (one, [])) if one.dataset == BORROWER else (one, [])
        pool = Pool([], [])
        for place in range(scaled(one.pool, self.share, LEAST_CANDIDATES)):
            borrowed = place // EVERY < len(lent) and place % EVERY == 0
            owner = lender if borrowed else one
            did = lent[place // EVERY] if borrowed else self._new(one.dataset, one.number)
            pool.dids.append(did)
            pool.owners.append(owner)
            self._write_candidate(
                owner, did, f"local/mbeir_{local}", *([] if borrowed else ["global/mbeir_union_test"])
            )
            if not borrowed:
                self._picture_of(one, did)
        if one.dataset == LENDER:
            self.lent[one.target] = one, pool.dids
        self.counts["candidates"] += len(pool.dids)
        return pool

    def _add_queries(self, one: PublishedSet, split: str, pool: Pool) -> None:
        """The queries of a split; what those of train and val ask for stands in the union of the split."""
        name = f"mbeir_{one.dataset}_train" if split == "train" else f"mbeir_{one.name}_{split}"
        if own := split == "train" or (split == "val" and one.dataset == TESTED_ALONE):
            pool = self._new_pool(one, split)
        count, size = POSITIVES.get(one.dataset, 1), len(pool.dids)
        for place in range(scaled(getattr(one, split), self.share, LEAST_QUERIES)):
            qid = self._new(f"{one.dataset} queries", one.number)
            places = list(dict.fromkeys((place * 7 + step * 3) % size for step in range(count)))
            positives = [pool.dids[at] for at in places]
            row = self._query(one, qid, positives, pool, place)
            self._write(f"query/{split}/{name}.jsonl", json.dumps(row) + "\n")
            self.counts[split] += 1
            self.counts["lines"] += 1
            for at, did in zip(places, positives, strict=True):
                self._write(f"qrels/{split}/{name}_qrels.txt", f"{qid} 0 {did} 1 {one.task}\n")
                if split == "val" and not own:
                    self._write_union(pool.owners[at], did)

    def _new_pool(self, one: PublishedSet, split: str) -> Pool:
        """Candidates that no test pool holds, three for four queries."""
        count = max(LEAST_CANDIDATES, scaled(getattr(one, split), self.share, LEAST_QUERIES) * 3 // 4)
        dids = [self._new(one.dataset, one.number) for _ in range(count)]
        for did in dids:
            self._picture_of(one, did)
            self._write_candidate(one, did, f"global/mbeir_union_{split}")
        return Pool(dids, [one] * count)

    def _write_union(self, one: PublishedSet, did: str) -> None:
        """A test candidate that val asks for, once in the union of val."""
        if did not in self.asked:
            self.asked.add(did)
            self._write_candidate(one, did, "global/mbeir_union_val")

    def _write_candidate(self, one: PublishedSet, did: str, *pools: str) -> None:
        words = PASSAGE if one.dataset in PASSAGES else CAPTION
        fields = {
            "did": did,
            "txt": sentence(f"c{did}", words) if "text" in one.target else None,
            "img_path": path_of(one, f"c{did}") if "image" in one.target else None,
            "modality": one.target,
            "src_content": None,
        }
        line = json.dumps(fields) + "\n"
        for pool in pools:
            self._write(f"cand_pool/{pool}_cand_pool.jsonl", line)
            self.counts["lines"] += 1

    def _query(self, one: PublishedSet, qid: str, positives: list[str], pool: Pool, place: int) -> dict[str, Any]:
        """A query's row; every second task lists objects with a did."""
        path = None
        if "image" in one.query:
            seen = one.target == "image" and place % 2
            path = path_of(one, f"c{pool.dids[place % len(pool.dids)]}") if seen else self._picture(one, f"q{qid}")
        listed: list[Any] = [{"did": did} for did in positives] if one.task % 2 else positives
        return {
            "qid": qid,
            "query_txt": sentence(f"q{qid}", CAPTION) if "text" in one.query else None,
            "query_img_path": path,
            "query_modality": one.query,
            "query_src_content": None,
            "pos_cand_list": listed,
            "neg_cand_list": [
                pool.dids[(place * 5 + step) % len(pool.dids)] for step in range(NEGATIVES.get(one.dataset, 0))
            ],
            "task_id": one.task,
        }

    def _picture_of(self, one: PublishedSet, did: str) -> None:
        if "image" in one.target:
            self._picture(one, f"c{did}")

    def _picture(self, one: PublishedSet, name: str) -> str:
        """Adds a picture; its path."""
        data, entry = picture(f"{one.dataset} {name}"), tarfile.TarInfo(path_of(one, name))
        entry.size = len(data)
        self.tar.addfile(entry, io.BytesIO(data))
        self.counts["pictures"] += 1
        return entry.name

    def _new(self, of: str, number: int) -> str:
        """The next id of a data set's candidates or queries."""
        self.numbers[of] = self.numbers.get(of, 0) + 1
        return f"{number}:{self.numbers[of]}"

    def _write(self, path: str, line: str) -> None:
        if path not in self.files:
            place = self.root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            self.files[path] = self.enter_context(place.open("w", encoding="utf-8"))
        self.files[path].write(line)


class Parts(io.RawIOBase):
    """A file in parts of a size: `NAME-00`, `NAME-01` and so on."""

    def __init__(self, name: Path) -> None:
        self.name, self.number, self.left = name, 0, 0
        self.file: IO[bytes] = io.BytesIO()

    def writable(self) -> bool:
        """It is only written."""
        return True

    def write(self, data: Any) -> int:
        """Writes all of it, to a new part where the present one is full."""
        if self.left <= 0:
            self.file.close()
            self.file = open(f"{self.name}-{self.number:02d}", "wb")  # noqa: SIM115 - closed with the next, or by close
            self.number, self.left = self.number + 1, PART_BYTES
        self.left -= len(data)
        return self.file.write(data)

    def close(self) -> None:
        """Ends the last part."""
        self.file.close()
        super().close()


def path_of(one: PublishedSet, name: str) -> str:
    """Where the picture of `c4:17` or `q4:17` lies, a thousand in a folder."""
    folder = int(name.partition(":")[2]) // PER_FOLDER
    return f"mbeir_images/{one.dataset}_images/{folder:04d}/{name.replace(':', '-')}.jpg"


def picture(name: str) -> bytes:
    """A small JPEG that depends on the name alone."""
    pattern = Image.frombytes("RGB", (BLOCKS, BLOCKS), random.Random(name).randbytes(3 * BLOCKS**2))
    file = io.BytesIO()
    pattern.resize((SIDE, SIDE)).save(file, "JPEG", quality=75)
    return file.getvalue()


def sentence(name: str, words: int) -> str:
    """Words that depend on the name alone."""
    return " ".join(random.Random(name).choices(WORDS, k=words)).capitalize() + "."


def scaled(published: int, share: float, least: int) -> int:
    """How many of what was published, and never too few to be a set."""
    return max(least, round(published * share))
