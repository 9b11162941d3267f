"""`python -m tests.transcript docs/transcript.md`: the requests of docs/serving.md, and what came; `make loaders`.

They are sent to Puma's server over a small world of squares, and to vLLM's server of an exported student, where
`PUMA_VLLM_PYTHON` names one. What tests ask of the answers is in `tests/serve/test_serving_page.py` and
`tests/unit/test_vllm.py`; here they are written down.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pipeline.artifacts.garbage import keep_registered
from pipeline.web.served import ServedIndex
from stages.distributed.console import quiet_libraries
from stages.export.loaders import vllm_python
from stages.model.encoder import Encoder
from stages.model.rows import Row
from tests.loaders import machine, versions
from tests.s3.servers import free_port
from tests.search_world import make_world, write_index
from tests.serve.conftest import serving
from tests.serve.test_serving_page import ELSEWHERE, FOREIGN, HERE, blocks, photo
from tests.tiny_models import write_student
from tests.vllm_server import vllm_server

HEAD = """# A transcript

The requests of [serving.md](serving.md), as they were sent, and what came, beside the student's own vectors. Students
are small and untrained here, so the vectors mean nothing. `make loaders` writes this page. It was written on
{machine}, with

{versions}.

"""
TEXTS = (Row("A red circle."), Row("A blue square."))


def page() -> str:
    """The whole page."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "photo.jpg").write_bytes(photo())
        lines = ["## Puma's server", *by_puma(home)]
        if vllm_python():
            lines += ["## vLLM's server", *by_vllm(home)]
    return HEAD.format(machine=machine(), versions=versions()) + "\n\n".join(lines) + "\n"


def by_puma(home: Path) -> Iterator[str]:
    """What clients and curl send to Puma's server, and what comes."""
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    store, artifacts = make_world(home / "store")
    artifacts["index"], made = write_index(store, artifacts), artifacts["train"]
    keep_registered(store, "train", made.key, made.attempt, "puma")
    keys = {stage: one.key for stage, one in artifacts.items()}
    with serving(ServedIndex(store, keys, False)) as served:
        asking = Asking(home, served.url, made.local("model"), served.engine.student.encoder)
        for library, code in zip(FOREIGN, blocks("python"), strict=True):
            if find_spec(library):
                yield asking.python(code, TEXTS)
        for command, rows in zip(blocks("sh"), (TEXTS, [Row(None, photo())], ()), strict=True):
            yield asking.curl(command, rows)


def by_vllm(home: Path) -> Iterator[str]:
    """What clients and curl send to vLLM's server, and what comes."""
    student = write_student(home / "student", "qwen2_vl")
    with vllm_server(home / "student" / "model", home, free_port()) as url:
        asking = Asking(home, url, home / "student" / "model", student)
        for code in blocks("python", ELSEWHERE)[1:]:
            yield asking.python(code, TEXTS[:1])
        (body,) = (one for one in blocks("json") if '"messages"' in one)
        (home / "body.json").write_text(body.replace("PHOTO", base64.b64encode(photo()).decode()))
        yield f"`body.json`, with the picture for PHOTO:\n```json\n{body}```"
        command = f"curl -s {HERE}/v1/embeddings -H 'Content-Type: application/json' -d @body.json\n"
        yield asking.curl(command, [Row("What is it?", photo())])


@dataclass(frozen=True)
class Asking:
    """Sends requests to the server at `url` of the student in `model`, from the directory `home`."""

    home: Path
    url: str
    model: Path
    student: Encoder

    def python(self, code: str, rows: Sequence[Row]) -> str:
        """A block of Python, and its vectors."""
        found: dict = {}
        exec(code.replace(HERE, self.url).replace("PLACE", str(self.model)), found)
        return f"```python\n{code}```\n{self.told(found['vectors'], rows)}"

    def curl(self, command: str, rows: Sequence[Row]) -> str:
        """A command, and its vectors or results."""
        done = subprocess.run(
            ["sh", "-c", command.replace(HERE, self.url)], cwd=self.home, capture_output=True, check=True
        )
        answer = json.loads(done.stdout)
        if "results" in answer:
            return f"```sh\n{command}```\n```json\n{json.dumps(answer['results'], indent=1)}\n```"
        return f"```sh\n{command}```\n{self.told([one['embedding'] for one in answer['data']], rows)}"

    def told(self, vectors: Sequence[Sequence[float]], rows: Sequence[Row]) -> str:
        """Vectors in a line: how many and how long, the first values, and the least cosine to the student's own."""
        found_ND, first = np.array(vectors), ", ".join(f"{value:.4f}" for value in vectors[0][:4])
        least = min(1.0, float((found_ND * self.student.encode(rows)).sum(1).min()))
        count, values = found_ND.shape
        what = f"{count} vectors" if count > 1 else "1 vector"
        return f"→ {what} of {values} values, [{first}, …]; least cosine to the student's own {least:.6f}"


if __name__ == "__main__":
    quiet_libraries()
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")  # some library says something on stdout at any time
