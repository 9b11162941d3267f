"""Teachers from outside for tests: a model of sentence-transformers as small as can be, and files of vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 24
PROMPTS = {"query": "find ", "document": "read "}


def write_static(directory: Path, prompts: dict[str, str] | None = None, width: int = WIDTH) -> Path:
    """A model of one embedding for each word, saved as safetensors."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "find", "read", "Find", "number", "Thing", "red", "square", *map(str, range(64))]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(words), width)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(weights))
    SentenceTransformer(modules=[module], prompts=prompts, device="cpu").save(str(directory))
    return directory


def write_vectors(path: Path, rows: Sequence[dict[str, Any]], kind: pa.DataType) -> Path:
    """A Parquet file of rows of `id`, `vector` and perhaps `side`, the vectors as `kind`."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    columns["vector"] = pa.array(columns["vector"], kind)
    pq.write_table(pa.table(columns), path)
    return path


def drawn_vectors(ids: Sequence[str], width: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each id."""
    drawn_NT = np.random.default_rng(seed).normal(size=(len(ids), width)).astype(np.float32)
    return [{"id": identity, "vector": vector.tolist()} for identity, vector in zip(ids, drawn_NT, strict=True)]
