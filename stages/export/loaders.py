"""Stock loaders of an exported student: `python -m stages.export.loaders MODEL SAMPLES OUTPUT NAME…`, a process apart.

Apart, because transformers' combined processor wants torchvision, which Puma itself does without: there is
no CPU build of it for this torch. The CUDA build beside it works for what the processor needs once the two operators
that it registers are declared; `make install` puts it into a folder that this process alone sees. Whatever a loader
does, a crash included, it cannot take a finished training down with it.

vLLM wants an older transformers than Puma, so it has an environment of its own, whose Python `PUMA_VLLM_PYTHON` names.
This module runs there too, and so needs nothing at its head that both do not have.
"""

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.instructions import before_text
from stages.model.rows import Row

IN_NO_KEY = True  # checks the export

ROOT = Path(__file__).resolve().parents[2]
TORCHVISION = Path(sys.prefix) / "torchvision"
TIMEOUT = 1800  # seconds for the loaders of one process together: a large student on a CPU
VLLM, VLLM_BF16 = "vLLM", "vLLM in bfloat16"
VLLM_PYTHON = "PUMA_VLLM_PYTHON"
VLLM_TOKENS = 8192
"""Of a row at most: what the cache of keys and values is made for."""


@dataclass(frozen=True)
class Sample:
    """One input of the parity report; queries have an instruction, candidates have none."""

    instruction: str | None
    text: str | None
    image: bytes | None

    @property
    def row(self) -> Row:
        """As the pipeline reads it."""
        return Row(self.text, self.image, instruction=before_text(self.instruction))


def messages_of(row: Row) -> list[dict[str, Any]]:
    """A row as loaders with a chat template read it: its instruction said by the system, the rest by the user."""
    seen = [{"type": "image", "image": opened(row.image)}] if row.image else []
    said = [{"type": "text", "text": row.text}] if row.text else []
    told = [{"type": "text", "text": row.instruction}] if row.instruction else []
    system = [{"role": "system", "content": told}] if told else []
    return [*system, {"role": "user", "content": seen + said}]


class NotInstalled(Exception):
    """The loader can't run on this machine; the message says what is missing."""


def run_stock_loaders(
    model: Path, samples: Sequence[Sample], names: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Vectors [N, D] by each loader that is installed, and for each other one the reason why it was not run.

    `names` are the loaders to run; none given is all but those that are asked by name.
    """
    names = list(names or LOADERS)
    here = [name for name in names if name not in (VLLM, VLLM_BF16)]
    found, not_run = _in_a_process(sys.executable, model, samples, here)
    for name in (name for name in names if name not in here):
        if python := vllm_python():
            vectors, reason = _in_a_process(python, model, samples, [name])
            found, not_run = found | vectors, not_run | reason
        else:
            not_run[name] = f"it is not installed here, and {VLLM_PYTHON} names no Python that has it"
    return found, not_run


def vllm_python() -> str:
    """The interpreter that has vLLM; empty where there is none."""
    return os.environ.get(VLLM_PYTHON) or (sys.executable if find_spec("vllm") else "")


def _in_a_process(
    python: str, model: Path, samples: Sequence[Sample], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Vectors of the named loaders by this module under the interpreter `python`, and why others were not run."""
    if not names:
        return {}, {}
    with tempfile.TemporaryDirectory() as directory:
        given, output = Path(directory, "samples.json"), Path(directory, "vectors.npz")
        given.write_text(json.dumps([_packed(sample) for sample in samples]))
        files = [str(path) for path in (Path(model).resolve(), given, output)]
        command = [python, "-m", "stages.export.loaders", *files, *names]
        try:
            done = subprocess.run(command, cwd=ROOT, env=offline(), capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return {}, dict.fromkeys(names, f"no answer in {TIMEOUT} s")
        except OSError as error:
            return {}, dict.fromkeys(names, f"{python} can't be run: {error.strerror}")
        if done.returncode or not output.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return {}, dict.fromkeys(names, f"its process ended: {last[:200]}")
        with np.load(output) as vectors:
            found = {name: vectors[name] for name in names if name in vectors}
            return found, json.loads(str(vectors["not_run"]))


def offline() -> dict[str, str]:
    """The environment of a loader: on the CPU like the trained weights it is compared with, and no hub to wait for."""
    told = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | told


def _packed(sample: Sample) -> dict[str, str | None]:
    image = base64.b64encode(sample.image).decode() if sample.image else None
    return {"instruction": sample.instruction, "text": sample.text, "image": image}


def _unpacked(packed: dict[str, str | None]) -> Sample:
    image = base64.b64decode(packed["image"]) if packed["image"] else None
    return Sample(packed["instruction"], packed["text"], image)


def see_torchvision() -> None:
    """Makes torchvision importable in this process. Raises NotInstalled where there is none."""
    if not find_spec("torchvision"):
        if not TORCHVISION.exists():
            raise NotInstalled("torchvision is not installed; `make install` puts it where only this check sees it")
        sys.path.append(str(TORCHVISION))
    try:
        import torchvision  # noqa: F401 (a build for this torch needs no more)
    except (ImportError, RuntimeError):
        _declare_operators()


def _declare_operators() -> None:
    """What torchvision's compiled part registers, and its Python part asks for when it is imported."""
    import torch

    schemas = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    see_torchvision.keep = schemas  # the operators go with the object


def opened(image: bytes) -> Any:
    """The decoded picture; torchvision's own decoder is not built here."""
    from PIL import Image

    return Image.open(io.BytesIO(image)).convert("RGB")


def by_transformers(model: str, samples: Sequence[Sample]) -> np.ndarray:
    """AutoModel and AutoProcessor with the chat template; the last token's hidden state, normalised."""
    see_torchvision()
    import torch
    from transformers import AutoModel, AutoProcessor

    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model)
    vectors = []
    for sample in samples:
        inputs = processor.apply_chat_template(
            messages_of(sample.row), tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            state = network(**inputs).last_hidden_state[0, -1]
        vectors.append(torch.nn.functional.normalize(state, dim=0).numpy())
    return np.stack(vectors)


def by_sentence_transformers(model: str, samples: Sequence[Sample]) -> np.ndarray:
    """`encode_query` with the instruction as prompt for queries, `encode_document` for candidates."""
    if not find_spec("sentence_transformers"):
        raise NotInstalled("sentence-transformers is not installed")
    see_torchvision()
    import torch
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})

    def given(sample: Sample) -> Any:
        image = opened(sample.image) if sample.image else None
        if image is None:
            return sample.text
        return {"text": sample.text, "image": image} if sample.text else image

    vectors = {}
    for instruction in dict.fromkeys(sample.instruction for sample in samples):
        places = [place for place, sample in enumerate(samples) if sample.instruction == instruction]
        inputs = [given(samples[place]) for place in places]
        if instruction:
            found = loaded.encode_query(inputs, prompt=before_text(instruction))
        else:
            found = loaded.encode_document(inputs)
        vectors |= dict(zip(places, found, strict=True))
    return np.stack([vectors[place] for place in range(len(samples))])


def by_vllm(model: str, samples: Sequence[Sample], dtype: str = "float32") -> np.ndarray:
    """`LLM.embed` on the prompt that vLLM's server makes of `messages`, by the chat template."""
    see_torchvision()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm.model_executor.models import registry

    # It looks at a model's class in a process of its own. This is one already, and the other would see no torchvision.
    registry._run_in_subprocess = lambda look: look()
    text = json.loads(Path(model, "config.json").read_text())["text_config"]
    served = LLM(
        model=model,
        runner="pooling",
        dtype=dtype,
        enforce_eager=True,
        max_model_len=min(text["max_position_embeddings"], VLLM_TOKENS),
        limit_mm_per_prompt={"image": 1, "video": 0},
    )
    template = served.get_tokenizer().apply_chat_template
    prompts = []
    for sample in samples:
        prompt = {"prompt": template(messages_of(sample.row), tokenize=False)}
        prompts.append(prompt | ({"multi_modal_data": {"image": opened(sample.image)}} if sample.image else {}))
    return np.array([one.outputs.embedding for one in served.embed(prompts, use_tqdm=False)], np.float32)


LOADERS: dict[str, Callable[[str, Sequence[Sample]], np.ndarray]] = {
    "transformers AutoModel + AutoProcessor": by_transformers,
    "sentence-transformers": by_sentence_transformers,
    VLLM: by_vllm,
}
ASKED_BY_NAME = {VLLM_BF16: partial(by_vllm, dtype="bfloat16")}
"""Too coarse to ask whether a loader does the same; vLLM on a CPU has linear attention in this alone."""


def main(model: str, given: str, output: str, *names: str) -> None:
    """Runs the named loaders; one that fails is named as not run, and the next one has its turn."""
    samples = [_unpacked(packed) for packed in json.loads(Path(given).read_text())]
    vectors, not_run = {}, {}
    for name in names:
        try:
            vectors[name] = {**LOADERS, **ASKED_BY_NAME}[name](model, samples)
        except NotInstalled as missing:
            not_run[name] = str(missing)
        except Exception as error:  # whatever another library raises
            not_run[name] = f"it failed: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}"
    np.savez(output, not_run=json.dumps(not_run), **vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
