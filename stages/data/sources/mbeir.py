"""The M-BEIR layout on disk: which files there are, what they are called, and how they are cut into chunks.

    query/train/mbeir_{ds}_train.jsonl                     or, where none is, query/union_train/*.jsonl
    query/val|test/mbeir_{ds}_task{N}_{split}.jsonl
    cand_pool/local/mbeir_{ds}_task{N}_cand_pool.jsonl     (also …_task{N}_{split}_cand_pool.jsonl)
    cand_pool/global/mbeir_union_{split}_cand_pool.jsonl
    qrels/val|test/mbeir_{ds}_task{N}_{split}_qrels.txt    qid, unused, did, relevance, task
    instructions/query_instructions.tsv

The files of a corpus are few and large, the tasks of a cluster many: every file is cut at line ends into chunks, and
one Ray task reads a chunk by seeking. A chunk knows the number of its first line, so that a reject can name
file:line. Rows are parsed in `mbeir_rows`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.contract.context import InputError
from stages.data.sources.remote import Place

INSTRUCTIONS_FILE = "instructions/query_instructions.tsv"
INSTRUCTIONS_HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1"
CHUNK_BYTES = 16 * 2**20

NEEDED = {
    "query/train/*.jsonl or query/union_train/*.jsonl": ("query/train/*.jsonl", "query/union_train/*.jsonl"),
    "query/val/*.jsonl": ("query/val/*.jsonl",),
    "query/test/*.jsonl": ("query/test/*.jsonl",),
    "cand_pool/local/*_cand_pool.jsonl": ("cand_pool/local/*_cand_pool.jsonl",),
    INSTRUCTIONS_FILE: (INSTRUCTIONS_FILE,),
}
QUERY_NAME = re.compile(r"mbeir_(?P<dataset>.+?)(_task(?P<task>\d+))?_(?P<split>train|val|test)\.jsonl")
POOL_NAME = re.compile(r"mbeir_(?P<pool>.+)_cand_pool\.jsonl")
NAMES = {
    **{
        f"query/{folder}": (re.compile(r"mbeir_.+_train\.jsonl"), "mbeir_DATASET_train.jsonl")
        for folder in ("train", "union_train")
    },
    **{
        f"query/{split}": (re.compile(rf"mbeir_.+_task\d+_{split}\.jsonl"), f"mbeir_DATASET_taskN_{split}.jsonl")
        for split in ("val", "test")
    },
    "cand_pool/local": (POOL_NAME, "mbeir_DATASET_taskN_cand_pool.jsonl"),
    "cand_pool/global": (POOL_NAME, "mbeir_union_SPLIT_cand_pool.jsonl"),
}
"""What the files of each folder are called: the form, and how to say it."""


@dataclass(frozen=True)
class Source:
    """One JSONL file. `path` is relative to the root or `home`; `pool` is set for candidates, the rest for queries."""

    path: str
    pool: str | None = None
    split: str | None = None
    dataset: str | None = None
    task_id: int | None = None
    qrels: str | None = None
    pools: tuple[str, ...] = ()
    """Pools that may be this query file's own, the likeliest first, the union last; `ingest` chooses."""
    home: Place | None = None
    """Where the file lies if not below the root, as what was written out on the way does; pictures are never there."""

    def below(self, root: Place) -> Place:
        """The file itself."""
        return (self.home or root) / self.path


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a source: `nbytes` from `offset`, the first being line `first_line` (counted from 1)."""

    source: Source
    offset: int
    nbytes: int
    first_line: int


def require(root: Path) -> None:
    """Raises InputError where `root` is no M-BEIR directory: one line naming all that is missing, or a wrong name."""
    if not root.is_dir():
        raise InputError(f"data.path={root} is not a directory: give the one that holds query/ and cand_pool/")
    missing = [name for name, globs in NEEDED.items() if not any(any(root.glob(pattern)) for pattern in globs)]
    if not missing:
        refuse_misnamed(root)
        return
    mend = "give the directory that holds query/, cand_pool/ and instructions/"
    if missing == [INSTRUCTIONS_FILE]:
        mend = "a file with only its header line will do: " + INSTRUCTIONS_HEADER.replace("\t", "<tab>")
    raise InputError(f"data.path={root} is not in the M-BEIR layout, it lacks {', '.join(missing)}: {mend}")


def refuse_misnamed(root: Path) -> None:
    """Raises InputError for the first file whose name tells no dataset, task or pool; it would be passed over."""
    for folder, (form, told) in NAMES.items():
        for path in sorted(root.glob(f"{folder}/*.jsonl")):
            if not form.fullmatch(path.name) and not path.name.startswith("."):
                raise InputError(f"{path} is not named as M-BEIR names it: call it {told}, or take it away")


def candidate_sources(root: Path) -> list[Source]:
    """The local pools, then the global ones, each sorted by name."""
    paths = [*sorted(root.glob("cand_pool/local/*.jsonl")), *sorted(root.glob("cand_pool/global/*.jsonl"))]
    matches = [(path, POOL_NAME.fullmatch(path.name)) for path in paths]
    return [Source(str(path.relative_to(root)), pool=match["pool"]) for path, match in matches if match]


def query_sources(root: Path) -> list[Source]:
    """Train, val and test query files; the up-sampled union of train only where there are no files by data set."""
    train = sorted(root.glob("query/train/*.jsonl")) or sorted(root.glob("query/union_train/*.jsonl"))
    paths = [*train, *sorted(root.glob("query/val/*.jsonl")), *sorted(root.glob("query/test/*.jsonl"))]
    pools = {source.pool for source in candidate_sources(root)}
    return [source for path in paths if (source := _query_source(root, path, pools))]


def _query_source(root: Path, path: Path, pools: set[str | None]) -> Source | None:
    match = QUERY_NAME.fullmatch(path.name)
    if match is None:
        return None
    split, task = match["split"], match["task"]
    dataset = None if path.parent.name.startswith("union_") else match["dataset"]
    if split == "train":
        return Source(str(path.relative_to(root)), split=split, dataset=dataset)
    qrels = Path("qrels") / split / f"{path.stem}_qrels.txt"
    stem = f"{dataset}_task{task}"
    return Source(
        str(path.relative_to(root)),
        split=split,
        dataset=dataset,
        task_id=int(task) if task else None,
        qrels=str(qrels) if (root / qrels).is_file() else None,
        pools=(*(pool for pool in (f"{stem}_{split}", stem) if pool in pools), f"union_{split}"),
    )


def implied_unions(pools: list[str]) -> dict[str, set[str]]:
    """Union pools of val and test that have no file of their own, each with the local pools it is made of.

    A local pool belongs to the split in its name, or to both where its name has none.
    """
    other = {"val": ("_test", "_train"), "test": ("_val", "_train")}
    return {
        f"union_{split}": {pool for pool in pools if not pool.startswith("union_") and not pool.endswith(others)}
        for split, others in other.items()
        if f"union_{split}" not in pools
    }


def chunks(root: Place, source: Source, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cuts a file into chunks of about `size` bytes, at line ends. Reads the file once to count its lines."""
    offset, line = 0, 1
    with source.below(root).open("rb") as file:
        while block := file.read(size):
            if not block.endswith(b"\n"):
                block += file.readline()
            yield Chunk(source, offset, len(block), line)
            offset += len(block)
            line += block.count(b"\n")


def lines(root: Place, chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the lines of a chunk that are not blank."""
    with chunk.source.below(root).open("rb") as file:
        file.seek(chunk.offset)
        block = file.read(chunk.nbytes)
    for number, line in enumerate(block.split(b"\n"), start=chunk.first_line):
        if line.strip():
            yield number, line


def relevant(root: Path, qrels: str, wanted: set[str]) -> dict[str, list[str]]:
    """qid → dids of relevance above 0 in a qrels file, for the `wanted` qids; other lines are passed over."""
    found: dict[str, list[str]] = {}
    with (root / qrels).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) >= 4 and fields[0] in wanted and _positive(fields[3]):
                found.setdefault(fields[0], []).append(fields[2])
    return found


def _positive(relevance: str) -> bool:
    try:
        return float(relevance) > 0
    except ValueError:
        return False


def instructions(root: Path) -> list[dict]:
    """The rows of the instruction file, in the columns of `schemas.INSTRUCTIONS`.

    Columns are read by position, as published loaders do: 0 query modality, 1 target modality, 2 name of the data
    set, 3 its id, 4 and on the wordings, of which empty ones are skipped. Raises InputError naming a broken line.
    """
    from stages.data.sources.mbeir_rows import BadField, modality

    rows = []
    try:
        text = (root / INSTRUCTIONS_FILE).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{root / INSTRUCTIONS_FILE} is not in UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    for number, line in enumerate(text.splitlines()[1:], start=2):
        fields = [field.strip() for field in line.split("\t")]
        if not any(fields):
            continue
        try:
            kinds = modality(fields[0]), modality(fields[1])
            rows.append(
                {
                    "dataset_id": int(fields[3]),
                    "dataset": fields[2],
                    "query_modality": kinds[0],
                    "target_modality": kinds[1],
                    "prompts": [field for field in fields[4:] if field],
                }
            )
        except (IndexError, ValueError, BadField):
            where = f"{root / INSTRUCTIONS_FILE}:{number}"
            raise InputError(f"{where}: mend the line, its tabbed columns are {INSTRUCTIONS_HEADER.split()}") from None
    return rows
