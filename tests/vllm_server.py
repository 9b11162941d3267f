"""vLLM's own server over an exported student, for what asks it as clients do."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from stages.export.loaders import ROOT, offline, vllm_python

SEE_TORCHVISION = "from stages.export.loaders import see_torchvision\n\nsee_torchvision()\n"
"""What Python runs at its start, and so in every process of the server; see `stages.export.loaders`."""
SECONDS = 300
"""That a start may take."""


@contextmanager
def vllm_server(model: Path, work: Path, port: int) -> Iterator[str]:
    """The address of a server of `model`, which it calls `puma`; `work` is for its log and what it is started with."""
    (work / "sitecustomize.py").write_text(SEE_TORCHVISION)
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "puma", "--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port)]
    environment = offline() | {
        "PYTHONPATH": f"{work}:{ROOT}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while not is_up(url):
            assert process.poll() is None and time.monotonic() < deadline, (work / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def is_up(url: str) -> bool:
    """Whether a server answers."""
    try:
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False
