"""Embedding beside sentence-transformers: one exported student, the same inputs, in turns in one process.

Both are given encoded pictures and decode them; both read a batch of as many rows; the vectors are compared before
anything is timed. sentence-transformers needs torchvision, which `make install` puts where only checks see it.
"""

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluation.markdown_table import markdown_table
from tests.bench.floor import floor, shares
from tests.bench.turns import compare, side_by_side, speeds

SIZES = {"small": {"hidden": 128, "heads": 4, "layers": 2, "vision_hidden": 128, "vision_layers": 2},
         "deep": {"hidden": 192, "heads": 6, "layers": 14, "vision_hidden": 128, "vision_layers": 2},
         "large": {"hidden": 768, "heads": 12, "layers": 12, "vision_hidden": 384, "vision_layers": 6}}  # fmt: skip
"""A student like that of `make demo`, a deep backbone of small width, and a student of some 100 million parameters;
random weights, which cost the same."""
BATCH = 32
MINIMUM_COSINE = 0.99999
PROFILED = ("short texts", "pictures, 128 × 128", "pictures, 640 × 480")
FLOOR = "rows a second if nothing but the counted products of matrices took time, at this machine's rate of them."


def embed(directory: Path) -> dict[str, Any]:
    """Rows per second of `Encoder.encode` against `SentenceTransformer.encode` on the same directory."""
    from stages.export.loaders import see_torchvision

    see_torchvision()
    table, profiles = [], []
    for name in ("small", "large"):
        student = write_student(directory / name, name)
        encoder, ours, rival = load(student)
        for kind, rows in inputs(16 if name == "large" else 64).items():
            cosine = float((ours(rows) * rival(rows)).sum(1).min())
            if cosine < MINIMUM_COSINE:
                raise SystemExit(f"embed: {name}, {kind}: least cosine {cosine:.6f} to sentence-transformers")
            found = compare(partial(ours, rows), partial(rival, rows), len(rows))
            least = floor(encoder, rows) / len(rows)
            table.append({"student": name, "rows": kind, "cosine": cosine, "floor": 1 / least, **found})
            line = "{student}, {rows}: {ratio[median]:.2f} times ({ratio[min]:.2f} to {ratio[max]:.2f})"
            print(line.format(**table[-1]), file=sys.stderr, flush=True)
        profiles += [f"- {name}, {kind}: {shares(partial(encoder.encode, inputs(16)[kind]))}" for kind in PROFILED]
    told = [section(table), "", f"Floor: {FLOOR} Where the time of ours goes:", "", *profiles]
    return side_by_side(table, "\n".join(told), "student", "rows")


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    head = ["student", "rows", "rows/s", "sentence-transformers", "ratio", "in the rounds", "least cosine", "floor"]
    lines = [
        [one["student"], one["rows"], *speeds(one), f"{one['cosine']:.6f}", f"{one['floor']:,.0f}"] for one in table
    ]
    return markdown_table([head, *lines])


def write_student(directory: Path, name: str, layers: int | None = None) -> Path:
    """A model of random weights or its first layers, exported; reads 1,800 characters and 300 image tokens at most."""
    from stages.export.checkpoint import export_student, save_backbone
    from stages.model.encoder import Encoder
    from stages.model.tiny import tiny_config, train_tokenizer, write_tiny
    from tests.tiny_models import TEXTS

    source, weights, exported = (directory / part for part in ("source", "weights", "model"))
    for place in (source, weights):
        place.mkdir(parents=True)
    tokenizer = train_tokenizer(TEXTS * 20, 400)
    limits = {"min_pixels": 4 * 28 * 28, "max_pixels": 300 * 28 * 28, "max_text_characters": 1800}
    write_tiny(source, tokenizer, tiny_config(tokenizer, patch=14, **SIZES[name]), **limits, seed=0)
    backbone = Encoder.load(source, layers).backbone
    save_backbone(backbone.config, backbone.state_dict(), weights)
    export_student(weights, source, exported, {})
    return exported


Embedder = Callable[[list[Any]], np.ndarray]


def load(student: Path) -> tuple[Any, Embedder, Embedder]:
    """Puma's encoder; rows to unit vectors by it and by sentence-transformers, on the CPU with the same threads."""
    import torch
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    from stages.model.encoder import Encoder

    encoder = Encoder.load(student)
    stock = SentenceTransformer(str(student), device="cpu", model_kwargs={"dtype": torch.float32})

    def given(row: Any) -> Any:
        image = Image.open(io.BytesIO(row.image)) if row.image else None
        if image is None:
            return row.text
        return {"text": row.text, "image": image} if row.text else image

    def by_stock(rows: list[Any]) -> np.ndarray:
        return stock.encode([given(row) for row in rows], batch_size=BATCH, show_progress_bar=False)

    return encoder, lambda rows: encoder.encode(rows, batch_size=BATCH), by_stock


def inputs(count: int) -> dict[str, list[Any]]:
    """Rows by kind: `count` of each, fewer of the largest pictures. No two have the same picture."""
    from stages.model.rows import Row

    texts = [f"a small red thing number {number} on a wooden table" for number in range(count)]
    long = [" ".join([text] * 12) for text in texts]
    small = [Row(None, photo(128, 128, seed)) for seed in range(count)]
    both = [Row(text, photo(128, 128, seed)) for seed, text in enumerate(texts, start=count)]
    return {
        "short texts": [Row(text) for text in texts],
        "long texts": [Row(text) for text in long],
        "pictures, 128 × 128": small,
        "pictures, 640 × 480": [Row(None, photo(640, 480, seed)) for seed in range(count // 2)],
        "pictures, 12 megapixels": [Row(None, photo(4000, 3000, seed)) for seed in range(4)],
        "text and picture": both,
        "short, long, 128 × 128, text and picture, in turn": [
            row for four in zip(map(Row, texts), map(Row, long), small, both, strict=False) for row in four
        ][:count],
    }


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG of soft noise, which compresses about as a photograph does."""
    from PIL import Image

    rough = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
