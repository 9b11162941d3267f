"""kill -9 in the middle of features and of train: the same command goes on, and what comes out is the same."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import write_checkpoint

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 60, 4
TIMEOUT = 400


class Pipeline:
    """run.py up to train, on a small store of its own; distillation only cuts, for time."""

    def __init__(self, home: Path) -> None:
        self.home, self.store = home, home / "store"
        teacher = write_checkpoint(home / "teacher", "qwen2_vl")
        self.command = [
            sys.executable, str(ROOT / "pipeline" / "run.py"), "--recipe", "smoke", "--until", "train",
            f"store={self.store}", f"tracking_uri=sqlite:///{home}/mlflow.db", "data.scenes.train=24",
            "data.scenes.val=8", "data.scenes.test=8", "backbone.source=local", f"backbone.model={teacher}",
            "features.rows_per_shard=8", "distill.steps=0", f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}",
            "train.log_every=1",
        ]  # fmt: skip
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        self.environment["XDG_CACHE_HOME"] = str(home / "cache")

    def start(self, log: str, *options: str) -> subprocess.Popen:
        with (self.home / log).open("w") as out:
            return subprocess.Popen(
                [*self.command, *options], cwd=self.home, env=self.environment, stdout=out, stderr=out
            )

    def killed(self, log: str, ripe: Callable[[], bool]) -> str:
        """Starts, kills without notice as soon as `ripe`; what was said until then."""
        process = self.start(log)
        deadline = time.monotonic() + TIMEOUT
        while not ripe():
            assert process.poll() is None and time.monotonic() < deadline, self.said(log)
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return self.said(log)

    def finished(self, log: str, *options: str) -> str:
        assert self.start(log, *options).wait(TIMEOUT) == 0, self.said(log)
        return self.said(log)

    def said(self, log: str) -> str:
        return (self.home / log).read_text()

    def manifest(self, stage: str) -> dict:
        (path,) = self.store.glob(f"{stage}/*/manifest.json")
        return json.loads(path.read_text())

    def shards(self) -> int:
        return len(list(self.store.glob("features/*/*/features/queries/*.parquet")))

    def checkpointed(self) -> bool:
        found = self.store.glob("train/*/_work/**/checkpoint_manager_snapshot.json")
        return any("checkpoint_" in path.read_text() for path in found)


def sums(manifest: dict, prefix: str, *but: str) -> dict[str, str]:
    """Checksums of the files below `prefix`."""
    files = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    return {path: digest for path, digest in files.items() if path.startswith(prefix) and path not in but}


def test_a_killed_run_goes_on_and_gives_what_an_uninterrupted_one_gives(tmp_path):
    run = Pipeline(tmp_path)
    run.killed("features.log", lambda: run.shards() >= 2)
    assert not list(run.store.glob("features/*/manifest.json"))
    killed = run.killed("train.log", run.checkpointed)
    there = re.search(r"features: (\d+) of (\d+) shards of features/queries were there", killed)
    assert there and 2 <= int(there[1]) <= int(there[2])
    resumed = run.finished("resumed.log")
    assert "train: goes on from checkpoint_" in resumed
    first = int(re.search(rf"train (\d+)/{STEPS}", resumed)[1])
    assert first > EVERY and first % EVERY == 1
    assert [record["status"] for record in map(json.loads, texts(run.store))] == ["interrupted"] * 2 + ["finished"]

    features, train = run.manifest("features"), run.manifest("train")
    whole = run.finished("whole.log", "--force", "features")
    assert "were there" not in whole and f"train 1/{STEPS}" in whole
    assert sums(run.manifest("features"), "features/") == sums(features, "features/")
    assert run.manifest("train")["attempt"] != train["attempt"]
    card = "model/README.md"  # tells measured speeds
    assert sums(run.manifest("train"), "model/", card) == sums(train, "model/", card)
    assert run.manifest("train")["metrics"]["loss"] == train["metrics"]["loss"]


def texts(store: Path) -> list[str]:
    return [path.read_text() for path in sorted((store / "runs").glob("*.json"))]
