"""Reads an exported student with stock loaders only: `python -m tests.stock_loaders MODEL INPUTS OUTPUT`.

transformers' combined processor wants torchvision, which has no CPU build for this torch; the CUDA build works for
what the processor needs once the two operators that it registers are declared. This process alone sees it, in the
folder that `make install` fills, so that nothing of Puma can come to depend on it.
"""

import json
import sys
from pathlib import Path

import numpy as np

TORCHVISION = Path(sys.prefix) / "torchvision"


def see_torchvision() -> None:
    """Makes torchvision importable in this process."""
    import torch

    if not TORCHVISION.exists():
        raise SystemExit("torchvision is missing: run `make install`, which puts it into .venv/torchvision")
    sys.path.append(str(TORCHVISION))
    schemas = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    see_torchvision.keep = schemas  # the operators go with the object


def messages(item: dict) -> list[dict]:
    """The chat message of one input; the picture opened, since torchvision's own decoder is not built here."""
    from PIL import Image

    parts = [{"type": "image", "image": Image.open(item["image"])}] if item["image"] else []
    return [{"role": "user", "content": parts + ([{"type": "text", "text": item["text"]}] if item["text"] else [])}]


def by_transformers(model: str, items: list[dict]) -> np.ndarray:
    """AutoModel and AutoProcessor; the last token's hidden state, normalised."""
    import torch
    from transformers import AutoModel, AutoProcessor

    network, processor = AutoModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    vectors = []
    for item in items:
        inputs = processor.apply_chat_template(
            messages(item), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=False
        )
        with torch.inference_mode():
            state = network(**inputs).last_hidden_state[0, -1]
        vectors.append(torch.nn.functional.normalize(state, dim=0).numpy())
    return np.stack(vectors)


def by_sentence_transformers(model: str, items: list[dict]) -> np.ndarray:
    """SentenceTransformer.encode on strings, pictures, and dictionaries of both, in one call."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    def given(item: dict):
        image = Image.open(item["image"]) if item["image"] else None
        if image is None:
            return item["text"]
        return {"text": item["text"], "image": image} if item["text"] else image

    return SentenceTransformer(model).encode([given(item) for item in items])


if __name__ == "__main__":
    see_torchvision()
    model, inputs, output = sys.argv[1:]
    items = json.loads(Path(inputs).read_text())
    np.savez(
        output,
        transformers=by_transformers(model, items),
        sentence_transformers=by_sentence_transformers(model, items),
    )
