"""`python -m tests.loaders docs/loaders.md`: every backbone by every loader on every kind of input; `make loaders`.

A small untrained student of each family, and one of a public embedder with its own prompt, goes through the parity
report. What was measured can't be measured again in a test of milliseconds, so a test asks of the page only that it
has every backbone, loader and kind, and that all agree.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from subprocess import check_output

from stages.distributed.console import quiet_libraries
from stages.export.loaders import VLLM_BF16, Sample, run_stock_loaders, vllm_python
from stages.export.mlflow_model import pyfunc_vectors
from stages.export.parity import MINIMUM_COSINE, check_parity, samples
from stages.model.families import FAMILIES, Family
from tests.tiny_models import EMBEDDER, MOST_CHARACTERS, write_student

KINDS = ("text", "text that is cut", "picture", "picture and text")
COARSE = {"qwen3_5": (VLLM_BF16, 0.999)}
"""For a family that vLLM's build for the CPU does not compute in float32: how it is asked, and what it must reach."""
BACKBONES = (*FAMILIES, EMBEDDER)
COLUMNS = ("backbone", "loader", *KINDS)
HEAD = """# Backbone families, loaders, inputs

The least cosine, over the inputs of a kind, between vectors by a loader of an exported student and by the weights that
were exported. The inputs are those of the parity report that every student carries: plain texts, other scripts,
control tokens, blanks, texts longer than what is read; pictures small, wide, tall and large; with an instruction and
without. A trained student with less than {least} for any loader in float32 is not registered. `make loaders` writes
this page. It was measured on small untrained students, on {machine},
with

{versions}.

{kept}
- `{embedder}`: a `qwen3_vl` that is read as Qwen3-VL-Embedding is, by its own prompt and last token; the others
  are read by the prompt `puma`

Loaders read a text as it is given. Ingest, searches and Puma's server first give it one form, without quotation marks
around it, a capital letter first and `.`, `?` or `!` last: in another form it has another vector than in an index.
sentence-transformers and `AutoProcessor` refuse texts too where torchvision is missing; it comes with
`sentence-transformers[image]` or `transformers[vision]`.

On a GPU Qwen3.5 wants the packages `flash-linear-attention` and `causal-conv1d`: without them transformers computes
linear attention in plain torch, right and slow, and says so.

"""
VERSION = "import importlib.metadata as m; name = m.packages_distributions()['vllm'][0]; print(name, m.version(name))"


def page() -> str:
    """The whole page: a table with a row for each loader of each backbone."""
    lines = [COLUMNS, ("---",) * 2 + ("---:",) * len(KINDS), *(row for name in BACKBONES for row in rows(name))]
    kept = "\n".join(f"- `{family.model_type}`: a student keeps {keeps(family)}" for family in FAMILIES.values())
    told = {"machine": machine(), "versions": versions(), "kept": kept, "embedder": EMBEDDER}
    head = HEAD.format(least=MINIMUM_COSINE, **told)
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def keeps(family: Family) -> str:
    """Which layers a student can have, in words."""
    if family.group > 1:
        return f"whole groups of {family.group} layers, after which their kinds repeat"
    return f"its first {family.must_stay} layers and any others" if family.must_stay else "any layers"


def rows(backbone: str) -> Iterator[tuple[str, ...]]:
    """A student's row for each loader."""
    with tempfile.TemporaryDirectory() as name:
        place, inputs = Path(name), samples()
        student = write_student(place, backbone)
        more = {"MLflow pyfunc": pyfunc_vectors}
        report, _ = check_parity(place / "weights", place / "source", place / "model", more)
        cosines = {loader: found["cosines"] for loader, found in report["loaders"].items()}
        if backbone in COARSE:
            found, reason = run_stock_loaders(place / "model", inputs, [COARSE[backbone][0]])
            trained_ND = student.encode([one.row for one in inputs])
            cosines |= {loader: (vectors_ND * trained_ND).sum(1) for loader, vectors_ND in found.items()}
            report["not_run"] |= reason
    for loader, of_each in cosines.items():
        yield f"`{backbone}`", loader, *cells(of_each, inputs)
    for loader, reason in report["not_run"].items():
        yield f"`{backbone}`", loader, f"not run: {reason}", *[""] * (len(KINDS) - 1)


def cells(cosines: Sequence[float], inputs: Sequence[Sample]) -> Iterator[str]:
    """The least cosine of each kind of input."""
    kinds = [kind_of(sample) for sample in inputs]
    for kind in KINDS:
        least = min(cosine for cosine, one in zip(cosines, kinds, strict=True) if one == kind)
        yield f"{min(1.0, least):.6f}"


def kind_of(sample: Sample) -> str:
    """Which of `KINDS` an input is."""
    text = (sample.row.instruction or "") + (sample.text or "")
    if sample.image:
        return "picture and text" if text.strip() else "picture"
    return "text that is cut" if len(text) > MOST_CHARACTERS else "text"


def machine() -> str:
    """What it was computed on."""
    system, processor, python = platform.system(), platform.machine(), platform.python_version()
    return f"{os.cpu_count()} cores of a machine without a GPU ({processor} {system}, Python {python})"


def versions() -> str:
    """What computed the vectors."""
    names = ("torch", "transformers", "sentence-transformers", "mlflow")
    found = [f"{name} {version(name)}" for name in names]
    if python := vllm_python():
        found.append(f"{check_output([python, '-c', VERSION], text=True).strip()} in an environment of its own")
    return ", ".join(found)


if __name__ == "__main__":
    quiet_libraries()
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")  # some library says something on stdout at any time
