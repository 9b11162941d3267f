"""A run on object storage, killed without notice on its way: the same command goes on, and what comes out is the same.

One kill by default, in train, where the run then ends, and a second training to compare with; `PUMA_KILLS=all` kills
ten times, in every stage that computes, and computes features again too. `tests/unit/test_shards.py` and
`tests/ray/test_pools.py` have it that shards of a killed attempt are taken over.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.test_pipeline import STAGES
from tests.s3.servers import moto_server
from tests.tiny_models import write_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.kills, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
ALL = os.environ.get("PUMA_KILLS") == "all"
STEPS, EVERY = 60, 4  # with fewer, workers that outlive their driver for a second end the training before it is killed
TIMEOUT = 400


class Pipeline:
    """run.py on a small store of its own in a bucket; distillation only cuts, and nothing is compared, for time."""

    def __init__(self, home: Path, address: str) -> None:
        from pipeline.artifacts import s3

        self.home, self.client = home, s3.client(address, "us-east-1")
        self.client.create_bucket(Bucket="bucket")
        teacher = write_checkpoint(home / "teacher", "qwen2_vl")
        self.command = [
            sys.executable, str(ROOT / "pipeline" / "run.py"), "--recipe", "smoke",
            "store=s3://bucket/puma", f"store_endpoint={address}", f"tracking_uri=sqlite:///{home}/mlflow.db",
            "data.scenes.train=24", "data.scenes.val=8", "data.scenes.test=8",
            "backbone.source=local", f"backbone.model={teacher}", f"cluster.rows_per_shard={16 if ALL else 32}",
            "distill.steps=0", f"train.steps={STEPS}", f"cluster.checkpoint_every={EVERY}", "cluster.log_every=1",
            "train.check_loaders=false", "evaluate.teacher=false",
        ]  # fmt: skip
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        self.environment = clean | {"XDG_CACHE_HOME": str(home / "cache"), "PUMA_CACHE": str(home / "objects")}

    def start(self, log: str, *options: str) -> subprocess.Popen:
        with (self.home / log).open("w") as out, (self.home / f"{log}.json").open("w") as answer:
            return subprocess.Popen(
                [*self.command, "--json", *options], cwd=self.home, env=self.environment, stdout=answer, stderr=out
            )

    def killed(self, log: str, ripe: Callable[[], bool]) -> str:
        """Starts, kills without notice as soon as `ripe`; what was said until then."""
        process = self.start(log)
        deadline = time.monotonic() + TIMEOUT
        while not ripe():
            assert process.poll() is None and time.monotonic() < deadline, self.said(log)
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return self.said(log)

    def finished(self, log: str, *options: str) -> dict:
        assert self.start(log, *options).wait(TIMEOUT) == 0, self.said(log)
        return json.loads((self.home / f"{log}.json").read_text())

    def said(self, log: str) -> str:
        return (self.home / log).read_text()

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"puma/{prefix}")
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def text(self, key: str) -> str:
        return self.client.get_object(Bucket="bucket", Key=key)["Body"].read().decode()

    def manifest(self, stage: str) -> dict:
        (key,) = [key for key in self.keys(f"{stage}/") if key.endswith("/manifest.json")]
        return json.loads(self.text(key))

    def has_shards(self, count: int) -> bool:
        """Whether so many shards are there; a resumed attempt lists those of killed ones under its own name too."""
        names = {Path(key).name for key in self.keys("features/") if "/features/queries/" in key}
        return len(names) >= count

    def arrived(self) -> int:
        """The step of the newest checkpoint of the training that is in the bucket; 0 where there is none."""
        found = [key for key in self.keys("train/") if key.endswith("checkpoint_manager_snapshot.json")]
        newest = [json.loads(self.text(key))["latest_checkpoint_result"] for key in found]
        return max((result["metrics"]["step"] for result in newest if result), default=0)

    def points(self) -> Iterator[tuple[str, Callable[[], bool]]]:
        """Where to kill, in the order in which a run that goes on comes by: a log's name, and when."""
        if ALL:
            yield "ingest.log", lambda: bool(self.keys("ingest/"))
        for count in (2, 8, 16) if ALL else ():
            yield f"features{count}.log", lambda count=count: self.has_shards(count)
        for step in (4, 16, 28, 40) if ALL else (4,):
            yield f"train{step}.log", lambda step=step: self.arrived() >= step
        for stage in ("index", "evaluate") if ALL else ():
            yield f"{stage}.log", lambda stage=stage: bool(self.keys(f"{stage}/"))


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    with moto_server() as address:
        yield Pipeline(tmp_path, address)


def sums(manifest: dict, prefix: str, *but: str) -> dict[str, str]:
    """Checksums of the files below `prefix`."""
    files = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    return {path: digest for path, digest in files.items() if path.startswith(prefix) and path not in but}


def test_a_killed_run_goes_on_and_gives_what_an_uninterrupted_one_gives(pipeline: Pipeline) -> None:
    said, arrived = {}, {}
    for log, ripe in pipeline.points():
        said[log] = pipeline.killed(log, ripe)
        arrived[log] = pipeline.arrived()
    ends = () if ALL else ("--until", "train")
    finished = pipeline.finished("resumed.log", *ends)["stages"]
    done = {name: stage for name, stage in finished.items() if stage["action"] != "skipped"}
    assert list(done) == (STAGES if ALL else STAGES[:5])
    assert all(stage["uri"].startswith("s3://bucket/puma/") for stage in done.values())
    states = [json.loads(pipeline.text(key))["status"] for key in sorted(pipeline.keys("runs/"))]
    assert states == ["interrupted"] * len(said) + ["finished"]
    assert not [key for key in pipeline.keys("") if "/_work/" in key]

    logs = [*said, "resumed.log"]
    for before, after in pairwise(logs):
        text = pipeline.said(after)
        if before.startswith("features"):
            there = re.search(r"features: (\d+) of (\d+) shards of features/queries were there", text)
            assert there and int(before[8:-4]) <= int(there[1]) <= int(there[2])
        if before.startswith("train"):
            first = int(re.search(rf"train (\d+)/{STEPS}", text)[1])
            assert "train: goes on from checkpoint_" in text
            # Nothing is repeated that had arrived; one that was on its way at the kill may have arrived after it.
            assert first % EVERY == 1 and first > arrived[before] >= EVERY

    plan = pipeline.finished("plan.log", "--plan", *ends)["stages"]
    assert {plan[name]["action"] for name in done} == {"cached"}
    features, train = pipeline.manifest("features"), pipeline.manifest("train")
    pipeline.finished("whole.log", "--force", "features" if ALL else "train", "--until", "train")
    assert "were there" not in pipeline.said("whole.log") and f"train 1/{STEPS}" in pipeline.said("whole.log")
    if ALL:
        assert sums(pipeline.manifest("features"), "features/") == sums(features, "features/")
    assert pipeline.manifest("train")["attempt"] != train["attempt"]
    card = "model/README.md"  # tells measured speeds
    assert sums(pipeline.manifest("train"), "model/", card) == sums(train, "model/", card)
    assert pipeline.manifest("train")["metrics"]["loss"] == train["metrics"]["loss"]
