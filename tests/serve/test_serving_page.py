"""docs/serving.md can be copied and pasted: its requests, and its lines for proxies."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from stages.export.parity import MINIMUM_COSINE
from stages.model.rows import Row
from tests.s3.servers import free_port
from tests.serve.conftest import Served, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")
CLIENTS = TEXT.partition("## Clients")[2].partition("\n## ")[0]
ELSEWHERE = TEXT.partition("## Without this server")[2]
HERE = "http://127.0.0.1:8000"
ORIGIN = "https://search.example.com"
FOREIGN = ("openai", "langchain_openai", "llama_index")
ROOTS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))


def blocks(language: str, text: str = CLIENTS) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def photo() -> bytes:
    """A JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_page_has_a_request_for_each_client_and_kind():
    assert [len(blocks(language)) for language in ("python", "sh", "json")] == [3, 3, 6]
    assert all(name in CLIENTS for name in ("OpenAI", "LangChain", "LlamaIndex", "vLLM", "Jina", "Cohere"))


def test_the_transcript_is_of_these_requests_and_says_that_every_vector_is_the_students_own():
    """`make loaders` writes it; LlamaIndex is in it where it is installed."""
    told = (PAGE.parent / "transcript.md").read_text(encoding="utf-8")
    sent = [*blocks("python")[:2], *blocks("sh"), *blocks("python", ELSEWHERE)[1:]]
    assert [one for one in sent if one not in told] == []
    cosines = re.findall(r"the student's own ([\d.]+)$", told, re.MULTILINE)
    assert len(cosines) >= len(sent) - 1 and min(map(float, cosines)) >= MINIMUM_COSINE


@pytest.mark.parametrize("code", blocks("python"), ids=FOREIGN)
def test_a_client_as_installed_gets_vectors(server: Served, code: str):
    pytest.importorskip(code.split()[1].partition(".")[0])
    found: dict = {}
    exec(code.replace(HERE, server.url), found)
    expected = server.engine.student.embed_many([Row("A red circle."), Row("A blue square.")])
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-4)


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
@pytest.mark.parametrize("command", blocks("sh"))
def test_curl_gets_vectors_and_results(server: Served, command: str, tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    done = subprocess.run(
        ["sh", "-c", command.replace(HERE, server.url)], cwd=tmp_path, capture_output=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer.get("results") or answer["data"][0]["embedding"], answer


@pytest.mark.parametrize("body", blocks("json"))
def test_a_body_gets_a_vector_for_each_input(server: Served, body: str):
    sent = json.loads(body.replace("PHOTO", base64.b64encode(photo()).decode()))
    answer = server.post("v1/embeddings", json=sent).json()
    assert len(answer["data"]) == len(sent.get("input") or sent.get("inputs") or [1]), answer


@pytest.fixture(scope="module")
def behind(world) -> Iterator[Served]:
    """A server that was told of its proxy."""
    with serving(world.source, origin=ORIGIN) as served:
        yield served


def ask(url: str, origin: str, host: str | None) -> int:
    """The status of what the page at `origin` asks."""
    headers = {"origin": origin} | ({"host": host} if host else {})
    return requests.post(f"{url}/search", json={"text": "red"}, headers=headers, timeout=60).status_code


@pytest.mark.parametrize("host", [None, "search.example.com"], ids=["nginx", "Caddy"])
def test_the_page_asks_through_a_proxy_whatever_host_it_names(behind: Served, host: str | None):
    assert ask(behind.url, ORIGIN, host) == 200
    assert ask(behind.url, "https://evil.example", host) == 403
    assert ask(behind.url, "https://evil.example", "evil.example") == 421


@contextmanager
def proxy(command: list[str], port: int) -> Iterator[str]:
    """The address of a proxy that runs as long."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            assert process.poll() is None, command
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def check_proxy(url: str) -> None:
    """The page, its question and a picture of more than a megabyte go through."""
    assert requests.get(url, headers={"host": "search.example.com"}, timeout=60).status_code == 200
    assert ask(url, ORIGIN, "search.example.com") == 200
    assert ask(url, "https://evil.example", "search.example.com") == 403
    buffer = io.BytesIO()
    Image.effect_noise((1400, 1000), 90).save(buffer, "PNG")
    sent = {"files": {"image": ("x", buffer.getvalue())}, "headers": {"host": "search.example.com", "origin": ORIGIN}}
    assert len(buffer.getvalue()) > 1_000_000
    assert requests.post(f"{url}/search", timeout=60, **sent).status_code == 200


@pytest.mark.skipif(not shutil.which("nginx", path=ROOTS), reason="there is no nginx")
def test_nginx_with_the_lines_of_the_page(behind: Served, tmp_path: Path):
    (lines,), port = blocks("nginx", TEXT), free_port()
    places = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    inside = f"location /find/ {{ proxy_pass {behind.url}/; }}"
    inner = f"server {{ listen 127.0.0.1:{port}; {lines.replace(HERE, behind.url)} {inside} }}"
    written = (
        f"daemon off; master_process off; pid {tmp_path}/pid; events {{}} http {{ access_log off; {places} {inner} }}"
    )
    (tmp_path / "nginx.conf").write_text(written)
    program = shutil.which("nginx", path=ROOTS)
    with proxy(
        [program, "-e", str(tmp_path / "log"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], port
    ) as url:
        check_proxy(url)
        assert requests.get(f"{url}/find/page.js", timeout=60).status_code == 200
        assert ask(f"{url}/find", ORIGIN, "search.example.com") == 200


@pytest.mark.skipif(not shutil.which("caddy"), reason="there is no Caddy")
def test_caddy_with_the_file_of_the_page(behind: Served, tmp_path: Path):
    (lines,), port = blocks("caddy", TEXT), free_port()
    lines = lines.replace("search.example.com", f"http://search.example.com:{port}")
    (tmp_path / "Caddyfile").write_text(
        "{\n\tadmin off\n}\n" + lines.replace("127.0.0.1:8000", behind.url.removeprefix("http://"))
    )
    with proxy(["caddy", "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"], port) as url:
        check_proxy(url)
