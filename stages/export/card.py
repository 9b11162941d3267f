"""The model card: what the student is, how it was made and how to load it, with the run's own numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.export.loaders import VLLM
from stages.model.encoder import SETTINGS
from stages.model.prompt import DEFAULT, SETTING, read_out
from stages.model.prune import KEPT

IN_NO_KEY = True  # describes the student

CARD = """\
---
library_name: transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, multimodal-retrieval, layer-pruning, puma]
---
# Puma retriever, {layers} layers

Turns a text, an image, or both into one unit vector of {dim} numbers for retrieval by inner product. Made from a full
multimodal LLM by keeping {kept} and distilling the others into them
(PUMA, arXiv 2507.08064). {parameters:,} parameters; stock architecture, no custom code.

## Load
sentence-transformers, 6.2 or newer, with a method each for queries and candidates. Without torchvision it refuses this
directory, for texts too: `pip install "sentence-transformers[image]>=6.2,<7"`, in another environment than Puma's.
```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("path/to/this/directory")
model.encode_query(["A red circle."])  # the prompt "query" of config_sentence_transformers.json, or prompt_name=…
model.encode_document(["A red circle.", {{"text": "What is it?", "image": "photo.jpg"}}])
```
Loaders read a text as it is given. Puma first gives texts of data and queries one form, without quotation marks around
them, with a capital letter first and `.`, `?` or `!` last: in another form a text has another vector than in an index.

transformers: `AutoProcessor.apply_chat_template` on a user message of an image, a text or both, then the last token's
hidden state of `AutoModel`, normalised. Queries have a system message before it, an instruction and a new line;
candidates have none. The chat template is that of the read-out `{readout}`{placed}. `AutoProcessor` wants torchvision
as well, which comes with `transformers[vision]`.

MLflow, where the run registered it and `MLFLOW_TRACKING_URI` is that of the run:
`mlflow.pyfunc.load_model("models:/NAME@champion")`, `predict` on a list of texts, or on rows with the columns `text`,
`image` (encoded bytes) and `instruction`; each may be missing. The weights stay where they are.

vLLM: `vllm serve DIRECTORY --runner pooling --dtype float32`, then `POST /v1/embeddings` with `messages`: `input`
would skip the chat template, and with it the read-out token; without the dtype it computes in half precision. {vllm}

Smaller candidates by sentence-transformers: the signs, eight in a byte, or a byte for each value, by ranges that are
best taken of all candidates. Queries stay as they are. The run's report tells what is lost, by bytes of a candidate:
```python
from sentence_transformers.util import quantize_embeddings
signs = model.encode_document(["A red circle.", "A blue square."], precision="binary")
candidates = model.encode_document(["A red circle.", "A blue square."])
bytes_of_values = quantize_embeddings(candidates, "int8", calibration_embeddings=candidates)
```

Of an instruction and its text together {max_text_characters} characters are read, by every loader of this directory.

## Numbers of this run (stage `{stage}`)
| measure | value |
| --- | --- |
{measures}

## Parity of loaders
The same {inputs} inputs (queries and candidates; texts, pictures of several shapes, and both) by the trained weights
and by loaders of this directory, in float32 on a CPU.

| loader | least cosine | largest difference |
| --- | --- | --- |
{parity}

## Parameters
```
{parameters_text}
```
"""

READ_BY_VLLM = "Its own vectors are compared with the trained weights' below."
NOT_READ_BY_VLLM = "**It was not run on this directory**, only on small students of the same families."


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
    ] + [f"| {name} | not run: {reason} | |" for name, reason in report["not_run"].items()]
    settings = json.loads((directory / SETTINGS).read_text())
    prompt = read_out(settings.get(SETTING, DEFAULT))
    numbers = ", ".join(map(str, settings.get(KEPT, [])))
    card = CARD.format(
        **size,
        kept=f"its decoder layers {numbers}" if numbers else f"its first {size['layers']} decoder layers",
        stage=stage,
        measures="\n".join(rows),
        parity="\n".join(parity),
        inputs=report["inputs"],
        max_text_characters=settings["max_text_characters"],
        readout=prompt.name,
        placed="" if prompt.instructed else ", in which an instruction is the beginning of the text",
        vllm=READ_BY_VLLM if VLLM in report["loaders"] else NOT_READ_BY_VLLM,
        parameters_text=_text(params),
    )
    (directory / "README.md").write_text(card)


def _text(params: Any) -> str:
    return "\n".join(f"{name}: {value}" for name, value in vars(params).items())
