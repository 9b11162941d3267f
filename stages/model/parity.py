"""The parity report: the same inputs through the trained weights and through what was exported.

A loader that pads, tokenises or places images differently gives other vectors without an error (vLLM #16406 reports
cosines of 0.67 for another model), so every export is checked and the report travels with it.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from stages.model.encoder import Encoder, Row, load_collator
from stages.model.inputs import Collator

MINIMUM_COSINE = 0.9999


def sample_rows() -> list[Row]:
    """Sixteen inputs: texts short and long, pictures of several shapes, and both."""
    texts = [
        "A red circle.",
        "Find the picture.\nA blue square left of a circle.",
        "Äpfel, 苹果 & more!",
        "word " * 60,
    ]
    pictures = [_picture(size) for size in ((64, 64), (96, 64), (50, 120), (200, 150))]
    both = [Row(text, picture) for text in texts[:2] for picture in pictures]
    return [Row(text) for text in texts] + [Row(None, picture) for picture in pictures] + both


def _picture(size: tuple[int, int]) -> bytes:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, size[0] // 2, size[1] // 2), fill="red")
    draw.rectangle((size[0] // 2, size[1] // 2, size[0] - 5, size[1] - 5), fill="blue")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check_parity(weights: Path, source: Path, exported: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Compares loaders of `exported` with the trained weights in `weights`, read with the tokenizer of `source`.

    Returns:
        The report (for each loader the least cosine and the largest difference), and the model's size.

    Raises:
        ValueError: a loader's cosine is below `MINIMUM_COSINE`.
    """
    from stages.model.prune import load_backbone

    rows = sample_rows()
    backbone = load_backbone(weights)
    trained = Encoder(backbone, load_collator(source, backbone.config.text_config.vocab_size)).eval()
    reference = trained.encode(rows)
    size = {"layers": trained.layers, "parameters": trained.parameters_count, "dim": trained.dim}
    del backbone, trained  # one model in memory at a time
    reloaded = Encoder.load(exported)
    loaders, collator = {"puma": reloaded.encode(rows)}, reloaded.collator
    del reloaded
    loaders["transformers AutoModel"] = stock_vectors(exported, collator, rows)
    report = {"inputs": len(rows), "minimum_cosine": MINIMUM_COSINE, "loaders": {}}
    for name, vectors in loaders.items():
        cosine = float((vectors * reference).sum(1).min())
        report["loaders"][name] = {"cosine": cosine, "max_difference": float(np.abs(vectors - reference).max())}
        if cosine < MINIMUM_COSINE:
            raise ValueError(f"{name} reads the export with cosine {cosine:.5f} to the trained weights")
    return report, size


@torch.inference_mode()
def stock_vectors(directory: Path, collator: Collator, rows: list[Row]) -> np.ndarray:
    """Vectors by `AutoModel` alone: prompt from the chat template, positions and padding by transformers."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    vectors = []
    for row in rows:
        prompt = tokenizer.apply_chat_template([_message(row)], tokenize=False)
        pixels, grid = collator.patches(row.image) if row.image else (None, None)
        ids = torch.tensor([collator.expand(tokenizer(prompt, add_special_tokens=False)["input_ids"], grid)])
        vision = {}
        if pixels is not None:
            vision = {
                "pixel_values": torch.from_numpy(pixels),
                "image_grid_thw": torch.from_numpy(grid)[None],
                "mm_token_type_ids": (ids == collator.image_token).int(),
            }
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision)
        vectors.append(torch.nn.functional.normalize(output.last_hidden_state[0, -1], dim=0).numpy())
    return np.stack(vectors)


def _message(row: Row) -> dict[str, Any]:
    parts = [{"type": "image"}] if row.image else []
    return {"role": "user", "content": parts + ([{"type": "text", "text": row.text}] if row.text else [])}
