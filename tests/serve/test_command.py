"""`pipeline/serve.py`: what it refuses before it loads anything, what it says, and that it serves."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.serve import main, parse
from pipeline.web.server import bind
from tests.serve.conftest import serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--port", "x"], "invalid int value"),
        (["--port", "70000"], "is no port"),
        (["--replicas", "0"], "serve nothing"),
        (["--backend", "annoy"], "invalid choice: 'annoy'"),
        (["--replicas", "2"], "add --ray"),
        (["--batch", "512"], "give 1 to 256"),
        (["--batch", "0"], "give 1 to 256"),
        (["--host", "256.0.0.1", "--port", "0"], "can't bind"),
        (["--host", "a..b", "--port", "0"], "can't bind to a..b:0: no name of a host"),
        (["--token-file", "{home}/missing"], "can't be read"),
        (["--token-file", "{home}/short"], "16 or more plain characters"),
        (["--public-url", "search.example"], "no address of a page"),
        (["--public-url", "ftp://search.example"], "no address of a page"),
        (["--public-url", "https://"], "no address of a page"),
        (["--public-url", "https://a:b@search.example"], "no address of a page"),
        (["--public-url", "https://search.example:x"], "no address of a page"),
        (["train.los=mac"], "did you mean 'train.loss'"),
        (["seed=7"], "no index"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(world, arguments, told, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (world.home / "short").write_text("secret\n")
    arguments = [one.format(home=world.home) for one in arguments]
    assert main([*arguments, f"store={world.store.root}"]) == 2
    line = capsys.readouterr().err
    assert told in line and line.startswith("error: ") and line.count("\n") == 1


@pytest.mark.parametrize(
    "url, origin",
    [
        ("", ""),
        ("https://Search.example/puma/", "https://search.example"),
        ("https://search.example:443", "https://search.example"),
        ("http://search.example:8080/", "http://search.example:8080"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_a_public_address_is_read_as_browsers_name_it(url: str, origin: str):
    assert parse(["--public-url", url]).public_url == origin


def test_a_public_page_without_a_token_is_warned_of(capsys):
    from pipeline.web.server import warn_if_open

    warn_if_open("127.0.0.1", None, "https://search.example")
    assert "https://search.example is open to everyone" in capsys.readouterr().err
    warn_if_open("127.0.0.1", "a-token-long-enough", "https://search.example")
    warn_if_open("127.0.0.1", None, "")
    assert capsys.readouterr().err == ""


def test_a_port_in_use_is_reported(world, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), f"store={world.store.root}"]) == 2
    assert f"can't bind to 127.0.0.1:{port}" in capsys.readouterr().err


def test_an_answer_does_not_wait_for_the_packet_before_it():
    with bind("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP  # only then asyncio switches Nagle's algorithm off


def test_ray_serve_refuses_what_it_cannot_queue(world, monkeypatch):
    """Without a cluster: only what the deployment is told."""
    serve = pytest.importorskip("ray.serve")
    from pipeline.web import server

    deployed = {}
    monkeypatch.setattr(server, "connected", lambda cluster: nullcontext())
    monkeypatch.setattr(serve, "start", lambda **told: None)
    monkeypatch.setattr(serve, "deployment", lambda **told: deployed.update(told) or (lambda made: made))
    monkeypatch.setattr(serve, "ingress", lambda app: lambda: SimpleNamespace(bind=lambda: app))
    monkeypatch.setattr(serve, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(serve, "delete", lambda name: deployed.update(deleted=name))
    with pytest.raises(KeyboardInterrupt):
        server.serve_on_ray(parse(["--replicas", "2", "--ray"]), world.source, None, socket.socket())
    assert (deployed["num_replicas"], deployed["deleted"]) == (2, server.NAME)
    assert 0 < deployed["max_queued_requests"] <= 1000


def test_a_backend_of_ones_choice_answers(world):
    pytest.importorskip("faiss")
    with serving(replace(world.source, backend="faiss", compare=False)) as served:
        assert type(served.engine.student.index).__name__ == "FaissIndex"
        assert served.post(json={"text": "red", "k": 2}).status_code == 200


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nimport pipeline.serve as s\n"
        "try:\n    s.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pyarrow', 'numpy', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@contextmanager
def started(world, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command as a process of its own, and the port that its first line names."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(world.home / "cache")}
    for name in ("PUMA_TOKEN", "RAY_ADDRESS"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "pipeline" / "serve.py"), *options, "--port", "0", f"store={world.store.root}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("Puma serves http://"), process.stderr.read()
        yield process, line.split(":")[2].split("/")[0]
    finally:
        process.kill()


def ask(port: str) -> list[dict]:
    """The two nearest to a text."""
    body = json.dumps({"text": "red", "k": 2}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/search", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)["results"]


def test_the_command_serves_warns_where_it_is_exposed_and_ends_on_a_signal(world, tmp_path):
    with started(world, tmp_path, "--host", "0.0.0.0") as (process, port):
        assert len(ask(port)) == 2
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
    assert "warning: 0.0.0.0 is open to everyone" in complaints and "Traceback" not in complaints
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.slow
def test_replicas_on_ray_serve_answer_as_one_server_does(world, server, tmp_path):
    pytest.importorskip("ray.serve")
    expected = ask(server.url.rpartition(":")[2])
    with started(world, tmp_path, "--ray", "--replicas", "1") as (process, port):
        assert ask(port) == expected
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=120)
    assert "Traceback" not in complaints and process.returncode == 130
