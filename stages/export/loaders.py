"""Stock loaders of an exported student: `python -m stages.export.loaders MODEL SAMPLES OUTPUT NAME…`, a process apart.

Apart, because transformers' combined processor wants torchvision, which Puma itself does without: there is
no CPU build of it for this torch. The CUDA build beside it works for what the processor needs once the two operators
that it registers are declared; `make install` puts it into a folder that this process alone sees. Whatever a loader
does, a crash included, it cannot take a finished training down with it.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.instructions import before_text
from stages.model.rows import Row

IN_NO_KEY = True  # checks the export

ROOT = Path(__file__).resolve().parents[2]
TORCHVISION = Path(sys.prefix) / "torchvision"
TIMEOUT = 1800  # seconds for all loaders together: a large student on a CPU


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

    `names` are the loaders to run; none given is all.
    """
    names = list(names or LOADERS)
    with tempfile.TemporaryDirectory() as directory:
        given, output = Path(directory, "samples.json"), Path(directory, "vectors.npz")
        given.write_text(json.dumps([_packed(sample) for sample in samples]))
        files = [str(path) for path in (Path(model).resolve(), given, output)]
        command = [sys.executable, "-m", "stages.export.loaders", *files, *names]
        # On the CPU like the trained weights it is compared with; nothing here may wait for a hub.
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return {}, dict.fromkeys(names, f"no answer in {TIMEOUT} s")
        if done.returncode or not output.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return {}, dict.fromkeys(names, f"its process ended: {last[:200]}")
        with np.load(output) as vectors:
            found = {name: vectors[name] for name in names if name in vectors}
            return found, json.loads(str(vectors["not_run"]))


def _packed(sample: Sample) -> dict[str, str | None]:
    image = base64.b64encode(sample.image).decode() if sample.image else None
    return {"instruction": sample.instruction, "text": sample.text, "image": image}


def _unpacked(packed: dict[str, str | None]) -> Sample:
    image = base64.b64decode(packed["image"]) if packed["image"] else None
    return Sample(packed["instruction"], packed["text"], image)


def see_torchvision() -> None:
    """Makes torchvision importable in this process. Raises NotInstalled where there is none."""
    if find_spec("torchvision"):
        return
    if not TORCHVISION.exists():
        raise NotInstalled("torchvision is not installed; `make install` puts it where only this check sees it")
    import torch

    sys.path.append(str(TORCHVISION))
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


LOADERS: dict[str, Callable[[str, Sequence[Sample]], np.ndarray]] = {
    "transformers AutoModel + AutoProcessor": by_transformers,
    "sentence-transformers": by_sentence_transformers,
}


def main(model: str, given: str, output: str, *names: str) -> None:
    """Runs the named loaders; one that fails is named as not run, and the next one has its turn."""
    samples = [_unpacked(packed) for packed in json.loads(Path(given).read_text())]
    vectors, not_run = {}, {}
    for name in names:
        try:
            vectors[name] = LOADERS[name](model, samples)
        except NotInstalled as missing:
            not_run[name] = str(missing)
        except Exception as error:  # whatever another library raises
            not_run[name] = f"it failed: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}"
    np.savez(output, not_run=json.dumps(not_run), **vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
