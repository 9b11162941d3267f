"""The model card: what the student is, how it was made and how to load it, with the run's own numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = """\
---
library_name: transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, multimodal-retrieval, layer-pruning, puma]
---
# Puma retriever, {layers} layers

Turns a text, an image, or both into one unit vector of {dim} numbers for retrieval by inner product. Made from a full
multimodal LLM by keeping its first {layers} decoder layers and distilling the others into them
(PUMA, arXiv 2507.08064). {parameters:,} parameters; stock architecture, no custom code.

## Load
```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("path/to/this/directory")
model.encode(["A red circle.", {{"text": "What is it?", "image": "photo.jpg"}}])
```
`AutoModel.from_pretrained` gives the same vectors: build the prompt with the chat template and take the last token's
hidden state, normalised. Queries start with an instruction and a new line (see `prompts` in
`config_sentence_transformers.json`); candidates take none.

## Numbers of this run (stage `{stage}`)
| measure | value |
| --- | --- |
{measures}

## Parity of loaders
| loader | least cosine | largest difference |
| --- | --- | --- |
{parity}

## Parameters
```
{parameters_text}
```
"""


def write_card(directory: Path, stage: str, size: Mapping[str, int], report: Mapping[str, Any],
               measures: Mapping[str, Any], params: Any) -> None:  # fmt: skip
    """Writes `README.md` of a model directory.

    Args:
        directory: the model directory.
        stage: the stage that made it.
        size: layers, parameters and dim.
        report: the parity report.
        measures: numbers of the run, by name.
        params: the stage's sections, shown as they were.
    """
    rows = [f"| {name} | {value:.4g} |" for name, value in measures.items() if isinstance(value, int | float)]
    parity = [
        f"| {name} | {values['cosine']:.6f} | {values['max_difference']:.1e} |"
        for name, values in report["loaders"].items()
    ]
    card = CARD.format(
        **size, stage=stage, measures="\n".join(rows), parity="\n".join(parity), parameters_text=_text(params)
    )
    (directory / "README.md").write_text(card)


def _text(params: Any) -> str:
    return "\n".join(f"{name}: {value}" for name, value in vars(params).items())
