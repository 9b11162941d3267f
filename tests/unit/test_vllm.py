"""vLLM reads an exported student unchanged: `make test-vllm`, half a minute for each backbone on two cores.

Its server is asked as docs/serving.md says.

It has an environment of its own, whose Python `PUMA_VLLM_PYTHON` names, for it asks for other versions than Puma does.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from stages.export.loaders import VLLM, VLLM_PYTHON, run_stock_loaders
from stages.export.parity import MINIMUM_COSINE, samples
from stages.model.rows import Row
from tests.loaders import BACKBONES, COARSE
from tests.s3.servers import free_port
from tests.serve.test_serving_page import ELSEWHERE, HERE, blocks, photo
from tests.tiny_models import write_student
from tests.vllm_server import vllm_server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not os.environ.get(VLLM_PYTHON), reason=f"{VLLM_PYTHON} is not set; `make test-vllm` sets it"),
]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_vllm_gives_the_students_vectors_for_every_kind_of_input(backbone, tmp_path):
    loader, least = COARSE.get(backbone, (VLLM, MINIMUM_COSINE))
    student = write_student(tmp_path, backbone)
    found, not_run = run_stock_loaders(tmp_path / "model", samples(), [loader])
    assert not_run == {}
    cosines_N = (found[loader] * student.encode([one.row for one in samples()])).sum(1)
    print(f"{backbone} by {loader}: least cosine {cosines_N.min():.7f}")
    assert cosines_N.min() >= least


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server of a student, its address, the student and the directory."""
    home = tmp_path_factory.mktemp("server")
    student = write_student(home, "qwen2_vl")
    (home / "photo.jpg").write_bytes(photo())
    with vllm_server(home / "model", home, free_port()) as url:
        yield SimpleNamespace(url=url, student=student, home=home)


def check(server: SimpleNamespace, vectors: Sequence[Sequence[float]], row: Row) -> None:
    """That the one vector is the student's own."""
    (vector,) = np.array(vectors)
    assert (vector * server.student.encode([row])[0]).sum() >= MINIMUM_COSINE


@pytest.mark.parametrize("code", blocks("python", ELSEWHERE)[1:], ids=("openai", "langchain_openai"))
def test_a_client_of_its_server_gets_the_students_vector(server, code):
    found: dict = {}
    exec(code.replace(HERE, server.url).replace("PLACE", str(server.home / "model")), found)
    check(server, found["vectors"], Row("A red circle."))


def test_curl_sends_its_server_a_picture_with_a_text(server):
    (body,) = (one for one in blocks("json") if '"messages"' in one)
    (server.home / "body").write_text(body.replace("PHOTO", base64.b64encode(photo()).decode()))
    command = ["curl", "-s", f"{server.url}/v1/embeddings", "-H", "Content-Type: application/json", "-d", "@body"]
    answer = json.loads(subprocess.run(command, cwd=server.home, capture_output=True, check=True).stdout)
    check(server, [one["embedding"] for one in answer["data"]], Row("What is it?", photo()))
