"""The parity report: the same inputs through the trained weights and through every loader of what was exported.

A loader that pads, tokenises or places images differently gives other vectors without an error (vLLM #16406 reports
cosines of 0.67 for another model), so every export is checked and the report travels with it. A loader that ran and
differs stops the stage; one that could not run here is named as not run, with the reason.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoModel, AutoTokenizer

from stages.contract.context import StageError
from stages.export.loaders import LOADERS, Sample, messages_of, run_stock_loaders
from stages.model.encoder import Encoder, load_collator
from stages.model.inputs import Collator
from stages.model.prune import load_backbone
from stages.model.rows import Row

IN_NO_KEY = True  # checks the export

MINIMUM_COSINE = 0.9999
UNASKED = "only a student of the stage train is read by it, with train.check_loaders=true"
INSTRUCTIONS = ("Find it.", "Find what it shows:\n")
TEXTS = (
    "A red circle.",
    "A blue square left of a circle.",
    "Äpfel, 苹果 & more! हिन्दी, العربية 🙂",
    "  blank\tends \n",
    "a [RET] and <|im_start|>other <|im_<|im_end|>end|> tokens",
    "word " * 2000,
    "苹果" * 2000,
)
SIZES = ((64, 64), (300, 40), (50, 120), (1200, 900))
Reading = Callable[[Path, Sequence[Sample]], np.ndarray]


def samples() -> list[Sample]:
    """Queries and candidates: texts, pictures of several shapes, and both, long and odd ones among them."""
    pictures = [_picture(size) for size in SIZES]
    contents: list[tuple[str | None, bytes | None]] = [(text, None) for text in TEXTS]
    contents += [(None, picture) for picture in pictures]
    contents += [(text, picture) for text, picture in zip((*TEXTS[1:], " \n"), pictures * 2, strict=False)]
    asked = cycle((None, INSTRUCTIONS[0], None, INSTRUCTIONS[1]))
    blank = Sample(INSTRUCTIONS[0], "   ", None)
    return [blank, *(Sample(instruction, *content) for content, instruction in zip(contents, asked, strict=False))]


def _picture(size: tuple[int, int]) -> bytes:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, size[0] // 2, size[1] // 2), fill="red")
    draw.rectangle((size[0] // 2, size[1] // 2, size[0] - 5, size[1] - 5), fill="blue")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check_parity(
    weights: Path, source: Path, exported: Path, more: Mapping[str, Reading] | None = None, stock: bool = True
) -> tuple[dict[str, Any], dict[str, int]]:
    """Compares loaders of `exported` with the trained weights in `weights`, read with the tokenizer of `source`.

    Args:
        more: readings besides those that this package knows.
        stock: also run the loaders that need a process of their own.

    Returns:
        The report (for each loader the least cosine, the largest difference, and the cosine of each of `samples`; for
        the others why they were not run), and the model's size.

    Raises:
        StageError: a loader's cosine is below `MINIMUM_COSINE`.
    """
    backbone = load_backbone(weights)
    trained = Encoder(backbone, load_collator(source, backbone.config.text_config.vocab_size)).eval()
    inputs = samples()
    rows = [sample.row for sample in inputs]
    reference = trained.encode(rows)
    size = {"layers": trained.layers, "parameters": trained.parameters_count, "dim": trained.dim}
    size["decoder_parameters"] = trained.decoder_parameters_count
    del backbone, trained  # one model in memory at a time
    report: dict[str, Any] = {"inputs": len(rows), "minimum_cosine": MINIMUM_COSINE, "loaders": {}}
    report["not_run"] = dict.fromkeys(LOADERS, UNASKED)
    reloaded = Encoder.load(exported)
    collator = reloaded.collator
    compare(report, "puma", reloaded.encode(rows), reference)
    del reloaded
    compare(report, "transformers AutoModel", stock_vectors(exported, collator, rows), reference)
    if stock:
        found, report["not_run"] = run_stock_loaders(exported, inputs)
        for name, vectors in found.items():
            compare(report, name, vectors, reference)
    for name, read in (more or {}).items():
        compare(report, name, read(exported, inputs), reference)
    return report, size


def compare(report: dict[str, Any], name: str, vectors: np.ndarray, reference: np.ndarray) -> None:
    """Adds a loader's figures to the report. Raises StageError where it reads other vectors than were trained."""
    if vectors.shape != reference.shape:
        raise StageError(f"{name} reads the export as vectors {vectors.shape}, trained were {reference.shape}")
    cosines_N = (vectors * reference).sum(1)
    cosine = float(cosines_N.min())
    report["loaders"][name] = {
        "cosine": cosine,
        "max_difference": float(np.abs(vectors - reference).max()),
        "cosines": [round(float(one), 7) for one in cosines_N],
    }
    if not cosine >= MINIMUM_COSINE:  # also where it is not a number
        raise StageError(
            f"{name} reads the export with cosine {cosine:.5f} to the trained weights, below {MINIMUM_COSINE}; "
            "nothing was registered: install the versions that pyproject.toml names"
        )


@torch.inference_mode()
def stock_vectors(directory: Path, collator: Collator, rows: list[Row]) -> np.ndarray:
    """Vectors by `AutoModel` alone: prompt from the chat template, positions and padding by transformers."""
    model = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    vectors = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(messages_of(row), tokenize=False)
        pixels, grid = collator.patches(row) if row.image else (None, None)
        ids = torch.tensor([collator.expand(tokenizer(prompt, add_special_tokens=False)["input_ids"], grid)])
        vision = {}
        if pixels is not None:
            vision = {
                "pixel_values": collator.cut.frames(collator.cut.values(torch.from_numpy(pixels))),
                "image_grid_thw": torch.from_numpy(grid)[None],
                "mm_token_type_ids": (ids == collator.image_token).int(),
            }
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision)
        vectors.append(torch.nn.functional.normalize(output.last_hidden_state[0, -1], dim=0).numpy())
    return np.stack(vectors)
