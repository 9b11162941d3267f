"""A teacher from outside: a sentence-transformers model that reads texts, or vectors that somebody computed.

It stands in for the backbone's layers in `features` alone: what is stored are its vectors, of any width. It has no
layer, so nothing that reads the backbone anew (a live teacher, an asymmetric index) can follow it.

A model reads plain texts: neither Puma's prompt nor a query's instruction, but its own prompts `query` and `document`
where it has them. No code of the model's is run, no file is downloaded, and no weights but safetensors are read.
"""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import InputError, StageError
from stages.contract.params import Cluster
from stages.data.vectors import VectorFiles, check_unique, describe_files, look_up

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.contract.context import Artifact, Attempt, Where
    from stages.distributed.actors import Models

SETTING = "features.teacher"
PACKAGE = "sentence-transformers>=6.2,<7"


def place(teacher: str) -> Path:
    """The path that the setting names."""
    return Path(teacher).expanduser().resolve()


def is_model(path: Path) -> bool:
    """Whether it is the directory of a sentence-transformers model; else it holds vectors."""
    return (path / "modules.json").is_file()


def check(teacher: str) -> None:
    """Raises InputError where nothing there can teach."""
    if "://" in teacher:
        raise InputError(f"{SETTING}={teacher} is not on a disk, and is read from there alone; copy it first")
    path = place(teacher)
    if not path.exists():
        raise InputError(f"{SETTING}={teacher} is not there; give a sentence-transformers directory or Parquet")
    if is_model(path):
        _check_model(path)
    else:
        VectorFiles(path, SETTING).check()


def fingerprint(teacher: str) -> dict[str, list[int]]:
    """What identifies it: its files by name, size and time, wherever they lie."""
    return describe_files(place(teacher))


def width_of(teacher: str) -> int:
    """Values of its vectors, as far as they are known without loading a model; 0 where they aren't."""
    path = place(teacher)
    return 0 if is_model(path) else VectorFiles(path, SETTING).width()


def _check_model(path: Path) -> None:
    """Raises InputError where the model can't be loaded, or only with code or weights that are not trusted."""
    if not find_spec("sentence_transformers"):
        raise InputError(f"{SETTING}={path} needs another package: pip install '{PACKAGE}'")
    try:
        types = [str(one["type"]) for one in json.loads((path / "modules.json").read_text(encoding="utf-8"))]
        kind = _kind(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{SETTING}={path} has a modules.json that can't be read; save the model anew") from None
    if kind != "SentenceTransformer":
        raise InputError(f"{SETTING}={path} is a {kind}, which gives no vector of a text; take a SentenceTransformer")
    if foreign := [one for one in types if not one.startswith("sentence_transformers.")]:
        raise InputError(f"{SETTING}={path} needs code of its own ({foreign[0]}), which is never run; take another")
    bare = [one for one in path.rglob("pytorch_model*.bin") if not any(one.parent.glob("*.safetensors"))]
    if bare:
        raise InputError(f"{SETTING}: {bare[0]} may hold code and is not read; save the model as safetensors")


def _kind(path: Path) -> str:
    """What sentence-transformers calls a model of its own."""
    settings = path / "config_sentence_transformers.json"
    given = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return given.get("model_type", "SentenceTransformer")


def check_ids(teacher: str, needed: "dict[str, np.ndarray]", data: "Artifact") -> None:
    """Raises StageError where vectors lack an id that is needed, before anything is read by them.

    Args:
        teacher: the setting.
        needed: sorted hashes of ids by side.
        data: the artifact whose rows they are, to name one.
    """
    path = place(teacher)
    if is_model(path):
        return
    from stages.data.keys import locate

    vectors = VectorFiles(path, SETTING)
    for side, wanted in needed.items():
        held = vectors.hashes(side)
        check_unique(held, f"{SETTING}={teacher}")
        count, example = _rows_of(wanted[locate(wanted, held) < 0], side, data)
        if count:
            raise StageError(
                f"{SETTING}={teacher} has no vector of {count:,} of {len(wanted):,} rows on the {side} side, for"
                f" example {example}; add them, by the ids in {data.uri}"
            )


def _rows_of(missing: "np.ndarray", side: str, data: "Artifact") -> tuple[int, str]:
    """(how many of these sorted hashes are of rows, the id of one): a positive need not be a candidate."""
    import numpy as np
    import pyarrow.parquet as pq

    from stages.data.keys import hash_ids, locate

    prefix, key = ("queries", "qid") if side == "query" else ("candidates", "did")
    seen, example = np.zeros(len(missing), bool), ""
    for file in data.files(prefix) if len(missing) else ():
        for batch in pq.ParquetFile(file, filesystem=data.filesystem).iter_batches(columns=[key]):
            ids = batch[key].to_pylist()
            places = locate(hash_ids(ids), missing)
            seen[places[places >= 0]] = True
            example = example or next((one for one, at in zip(ids, places, strict=True) if at >= 0), "")
    return int(seen.sum()), example


def reader(
    output: "Attempt", teacher: str, needed: "dict[str, np.ndarray]", data: "Artifact"
) -> "Callable[..., pa.Table]":
    """`read_outside` of this teacher, once it is known to have all that is needed; see `check_ids`."""
    check_ids(teacher, needed, data)
    return partial(read_outside, teacher=output.send(place(teacher)))


def written_width(output: "Attempt", prefix: str) -> int:
    """Values of the vectors that were written below `prefix/`."""
    import pyarrow.parquet as pq

    from stages.distributed.shards import files

    first = files(output, prefix)[0]
    return pq.read_schema(first, filesystem=output.filesystem).field("vector").type.list_size


def read_outside(models: "Models", table: "pa.Table", *, side: str, teacher: "Where") -> "pa.Table":
    """The table with `vector`: what the teacher at the place `teacher` gives for each row, as fp16."""
    from stages.distributed.teacher import states_column

    path, ids = teacher(), table["qid" if side == "query" else "did"].to_pylist()
    if is_model(path):
        vectors_NT = _read_texts(models, table, ids, side, path)
    else:
        vectors, width = _open(path, side)
        vectors_NT = look_up(vectors, ids, width, f"{SETTING}={path}")
    return table.append_column("vector", states_column(vectors_NT, "scale its vectors"))


@lru_cache
def _open(path: Path, side: str) -> tuple[Any, int]:
    vectors = VectorFiles(path, SETTING)
    return vectors.table(side), vectors.width()


def _read_texts(models: "Models", table: "pa.Table", ids: list[str], side: str, path: Path) -> "np.ndarray":
    """Vectors [N, T] of N texts.

    Raises:
        StageError: a row has a picture.
    """
    pictures = [identity for identity, image in zip(ids, table["image_id"].to_pylist(), strict=True) if image]
    if pictures:
        raise StageError(
            f"{SETTING}={path} reads texts alone, and {pictures[0]} has a picture; teach by texts, or give the vectors"
            " of all rows as Parquet"
        )
    model = _load(path, models.cluster)
    encode = model.encode_query if side == "query" else model.encode_document
    texts = table["text"].to_pylist()
    vectors_NT = encode(texts or [""], batch_size=models.batch_size, show_progress_bar=False)
    return vectors_NT[: len(texts)]


@lru_cache(maxsize=1)
def _load(path: Path, cluster: Cluster) -> Any:
    """The model, once in each process."""
    from stages.model.loading import let_threads_sleep

    let_threads_sleep()
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        from sentence_transformers import SentenceTransformer

        device = "cuda" if cluster.gpus_per_worker > 0 else "cpu"
        if device == "cpu":
            torch.set_num_threads(cluster.threads_each(cluster.actors))
        dtype = torch.bfloat16 if cluster.chosen_precision() == "bf16" else torch.float32
        asked = {"dtype": dtype, "use_safetensors": True}
        return SentenceTransformer(
            str(path), device=device, trust_remote_code=False, local_files_only=True, model_kwargs=asked
        )
    except ImportError:
        raise StageError(f"{SETTING}={path} needs another package on every node: pip install '{PACKAGE}'") from None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(f"{SETTING}={path} can't be loaded: {reason}; try it with SentenceTransformer") from error
