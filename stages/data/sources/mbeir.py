"""The M-BEIR layout on disk: which files there are and what they are called. Their rows are parsed in `mbeir_rows`.

query/train/mbeir_{ds}_train.jsonl                     or, where none is, query/union_train/*.jsonl
query/val|test/mbeir_{ds}_task{N}_{split}.jsonl
cand_pool/local/mbeir_{ds}_task{N}_cand_pool.jsonl     (also …_task{N}_{split}_cand_pool.jsonl)
cand_pool/global/mbeir_union_{split}_cand_pool.jsonl
qrels/val|test/mbeir_{ds}_task{N}_{split}_qrels.txt    qid, unused, did, relevance, task
instructions/query_instructions.tsv
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from stages.contract.context import InputError
from stages.data.sources.chunks import SourceFile
from stages.data.sources.fields import BadField, modality
from stages.data.sources.remote import Place

INSTRUCTIONS_FILE = "instructions/query_instructions.tsv"
INSTRUCTIONS_HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1"

NEEDED = {
    "query/train/*.jsonl or query/union_train/*.jsonl": ("query/train/*.jsonl", "query/union_train/*.jsonl"),
    "query/val/*.jsonl": ("query/val/*.jsonl",),
    "query/test/*.jsonl": ("query/test/*.jsonl",),
    "cand_pool/local/*_cand_pool.jsonl": ("cand_pool/local/*_cand_pool.jsonl",),
    INSTRUCTIONS_FILE: (INSTRUCTIONS_FILE,),
}
HEAD_BYTES, HEAD_ROWS = 2**20, 100
"""Of a file of rows, what is looked at before anything runs."""
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


def require(root: Place, setting: str = "data.path") -> None:
    """Raises InputError where `root` is no M-BEIR directory: one line naming all that is missing, or a wrong name."""
    if not root.is_dir():
        raise InputError(f"{setting}={root} is not a directory: give the one that holds query/ and cand_pool/")
    missing = [name for name, globs in NEEDED.items() if not any(any(root.glob(pattern)) for pattern in globs)]
    if not missing:
        refuse_misnamed(root)
        refuse_incomplete(root)
        if isinstance(root, Path):  # in a bucket every file would be a request
            refuse_unreadable(root)
        return
    advice = "give the directory that holds query/, cand_pool/ and instructions/"
    if missing == [INSTRUCTIONS_FILE]:
        advice = "a file with only its header line will do: " + INSTRUCTIONS_HEADER.replace("\t", "<tab>")
    raise InputError(f"{setting}={root} is not in the M-BEIR layout, it lacks {', '.join(missing)}: {advice}")


def refuse_misnamed(root: Place) -> None:
    """Raises InputError for the first file whose name holds no dataset, task or pool; it would be passed over."""
    for folder, (form, right) in NAMES.items():
        for path in sorted(root.glob(f"{folder}/*.jsonl")):
            if not form.fullmatch(path.name) and not path.name.startswith("."):
                raise InputError(f"{path} is not named as M-BEIR names it: call it {right}, or take it away")


def refuse_incomplete(root: Place) -> None:
    """Raises InputError for a test set without queries, or without its own pool: it would be asked of the union."""
    for file in query_files(root):
        if file.split == "test" and len(file.pools) == 1:
            pool = f"cand_pool/local/mbeir_{file.dataset}_task{file.task_id}_cand_pool.jsonl"
            raise InputError(f"{root / file.path} lacks its own pool, {pool}: add that, or take the queries away")
    found = {path.stem for path in root.glob("query/test/*.jsonl")}
    for path in sorted(root.glob("qrels/test/*_qrels.txt")):
        if (name := path.name.removesuffix("_qrels.txt")) not in found and not name.startswith("."):
            raise InputError(f"{path} lacks its queries, query/test/{name}.jsonl: add them, or take the qrels away")


def refuse_unreadable(root: Path) -> None:
    """Raises InputError for a file that can't be read or begins without rows, and for pictures that aren't there."""
    head_of(root / INSTRUCTIONS_FILE)
    rows = [row for file in (*candidate_files(root), *query_files(root)) for row in first_rows(root / file.path)]
    pictures = [row.get("img_path") or row.get("query_img_path") for row in rows]
    folders = {PurePosixPath(path).parts[0] for path in pictures if path and isinstance(path, str)}
    if folders and not any((root / folder).exists() for folder in folders):
        raise InputError(
            f"{root} lacks its pictures, {', '.join(sorted(folders)[:3])}: put them there, M-BEIR's by"
            " `cat mbeir_images.tar.gz.part-* | tar -xzf -`"
        )


def first_rows(path: Path) -> list[dict[str, Any]]:
    """The rows among the first lines of a file. Raises InputError where there is none."""
    rows = []
    for line in head_of(path).splitlines()[:HEAD_ROWS]:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):  # one bad row among good ones is rejected by itself
            continue
    if found := [row for row in rows if isinstance(row, dict)]:
        return found
    raise InputError(f"{path} begins without a row, a JSON object in a line: copy the file anew, or take it away")


def head_of(path: Path) -> bytes:
    """The first bytes of a file. Raises InputError where it is none, or can't be read."""
    try:
        if path.is_file():  # a pipe would wait for a writer
            with path.open("rb") as file:
                return file.read(HEAD_BYTES)
        reason = "no file"
    except OSError as error:
        reason = error.strerror
    raise InputError(f"{path} can't be read ({reason}): copy the file anew, or take it away")


def candidate_files(root: Place) -> list[SourceFile]:
    """The local pools, then the global ones, each sorted by name."""
    paths = [*sorted(root.glob("cand_pool/local/*.jsonl")), *sorted(root.glob("cand_pool/global/*.jsonl"))]
    matches = [(path, POOL_NAME.fullmatch(path.name)) for path in paths]
    return [SourceFile(str(path.relative_to(root)), pool=match["pool"]) for path, match in matches if match]


def query_files(root: Place) -> list[SourceFile]:
    """Train, val and test query files; the up-sampled union of train only where there are no files by data set."""
    train = sorted(root.glob("query/train/*.jsonl")) or sorted(root.glob("query/union_train/*.jsonl"))
    paths = [*train, *sorted(root.glob("query/val/*.jsonl")), *sorted(root.glob("query/test/*.jsonl"))]
    pools = {file.pool for file in candidate_files(root)}
    return [file for path in paths if (file := _query_file(root, path, pools))]


def _query_file(root: Place, path: Place, pools: set[str | None]) -> SourceFile | None:
    match = QUERY_NAME.fullmatch(path.name)
    if match is None:
        return None
    split, task = match["split"], match["task"]
    dataset = None if path.parent.name.startswith("union_") else match["dataset"]
    if split == "train":
        return SourceFile(str(path.relative_to(root)), split=split, dataset=dataset)
    qrels = PurePosixPath("qrels") / split / f"{path.stem}_qrels.txt"
    stem = f"{dataset}_task{task}"
    return SourceFile(
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


def relevant(root: Place, qrels: str, wanted: set[str]) -> dict[str, list[str]]:
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


def instructions(root: Place) -> list[dict[str, Any]]:
    """The rows of the instruction file, in the columns of `schemas.INSTRUCTIONS`.

    Columns are read by position, as published loaders do: 0 query modality, 1 target modality, 2 name of the data
    set, 3 its id, 4 and on the wordings, of which empty ones are skipped. Raises InputError naming a broken line.
    """
    rows = []
    try:
        text = (root / INSTRUCTIONS_FILE).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{root / INSTRUCTIONS_FILE} is not in UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    for number, line in enumerate(text.split("\n")[1:], start=2):
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
            columns = INSTRUCTIONS_HEADER.split()
            raise InputError(f"{where}: correct the line, its tabbed columns are {columns}") from None
    return rows
