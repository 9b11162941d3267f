"""One small run of the pipeline as a command with a store of its own: what it said, how far its stage has come.

A whole run is made once, as the reference. Each case begins with a copy of its store up to the stage that a fault is
to meet, so that the command computes this one stage.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.artifacts.store import Store, open_store
from tests.e2e.test_pipeline import STAGES
from tests.s3.servers import upload
from tests.support import ROOT

STEPS, EVERY = 24, 8
QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
"""Ray Train notes a checkpoint down when it next looks, every two seconds: a whole training here is no longer."""
TIMEOUT = 400
SETTINGS = (
    "data.scenes.train=24", "data.scenes.val=8", "data.scenes.test=8", "cluster.rows_per_shard=32",
    f"backbone.tiny.steps={STEPS}", f"distill.steps={STEPS}", f"train.steps={STEPS}",
    f"cluster.checkpoint_every={EVERY}", "cluster.log_every=1", "cluster.threads=1",
    "train.check_loaders=false", "evaluate.teacher=false",
)  # fmt: skip
TRAININGS = ("backbone", "distill", "train")
NOWHERE = "http://127.0.0.1:9"
SNAPSHOT = "checkpoint_manager_snapshot.json"
TOLD = re.compile(
    r"goes on from |shards of \S+ were there|pictures were checked before|what it would track is kept|events of "
)

Look = Callable[[subprocess.Popen], None]
"""Called with the running command every few milliseconds."""


@dataclass
class World:
    """One store, the command that fills it up to `stage`, and what a fault may change of both.

    Attributes:
        home: a directory of this case's own.
        place: the store, as `store=` takes it.
        address: of the bucket's server itself; empty for a directory.
        settings: besides SETTINGS.
        variables: of the command's environment.
        servers: what several cases share: Ray nodes, a proxy before a bucket or before MLflow.
        later: closed at the end of the case.
    """

    home: Path
    stage: str
    place: str
    address: str = ""
    settings: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    servers: Any = None
    later: ExitStack = field(default_factory=ExitStack)

    @property
    def store(self) -> Store:
        """The store, past any proxy."""
        return open_store(self.place, self.address)

    def start(self, name: str) -> subprocess.Popen:
        """The command; what it says goes to files of that name."""
        clean = {one: value for one, value in os.environ.items() if not one.startswith(("RAY_", "MLFLOW_"))}
        command = [sys.executable, str(ROOT / "pipeline" / "run.py"), "--recipe", "smoke", *SETTINGS]
        place = [f"store={self.place}", "--until", self.stage, "--json"]
        with (self.home / name).open("w") as out, (self.home / f"{name}.json").open("w") as answer:
            return subprocess.Popen(
                [*command, *place, *self.settings],
                cwd=self.home,
                env=clean | QUICK | self.variables,
                stdout=answer,
                stderr=out,
            )

    def run(self, name: str, look: Look = lambda process: None) -> int:
        """The command's exit code."""
        process = self.start(name)
        deadline = time.monotonic() + TIMEOUT
        try:
            while process.poll() is None:
                assert time.monotonic() < deadline, f"not done after {TIMEOUT} s: {self.said(name)[-4000:]}"
                look(process)
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        return process.returncode

    def said(self, name: str) -> str:
        return (self.home / name).read_text()

    def line(self, name: str) -> str:
        """The one line that says what went wrong, or from where the command went on; empty where it said neither."""
        lines = [line for line in self.said(name).splitlines() if NOWHERE not in line]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return next(iter([*errors, *filter(TOLD.search, lines)]), "")

    def is_under_way(self) -> bool:
        """Whether the stage has something that a killed run must not lose: a checkpoint, or a whole file of rows."""
        if self.stage in TRAININGS:
            return self.arrived() >= EVERY
        paths = [entry.path for entry in self.store.objects.files(self.stage)]
        return any(path.endswith(".parquet") and "/asked/" not in path for path in paths)  # those no model made

    def arrived(self) -> int:
        """The step of the newest checkpoint of the stage's training that is in the store; 0 where there is none."""
        newest = 0
        for entry in self.store.objects.files(self.stage):
            if entry.path.endswith(SNAPSHOT) and (found := self.store.objects.read(entry.path)):
                with suppress(ValueError):  # being written
                    latest = json.loads(found.data)["latest_checkpoint_result"]
                    newest = max(newest, latest["metrics"]["step"] if latest else 0)
        return newest

    def repeated(self, *names: str) -> int:
        """How many steps of the stage's training were made once more, after the restart that lost most."""
        found = [re.findall(rf"\b{self.stage} (\d+)/{STEPS} ", self.said(name)) for name in names]
        steps = [int(step) for said in found for step in said]
        return max((before + 1 - step for before, step in pairwise(steps)), default=0)

    def statuses(self) -> list[str]:
        """How the runs ended, by their records, oldest first."""
        return [record["status"] for record in reversed(self.store.runs())]


Fault = Callable[[World], AbstractContextManager[Look]]
"""Prepares a world, gives what looks after the running command, and mends what it broke when the block ends."""


def reference(home: Path, variables: dict[str, str]) -> World:
    """A whole run that nothing happens to."""
    world = World(home, STAGES[-1], str(home / "store"), settings=[f"tracking_uri={NOWHERE}"], variables=variables)
    assert world.run("whole") == 0, world.said("whole")[-4000:]
    return world


def earlier(stage: str) -> list[str]:
    """The stages before that one."""
    return STAGES[: STAGES.index(stage)]


def copied(whole: World, home: Path, stage: str, address: str = "") -> World:
    """A world that is about to compute `stage`: what comes before is copied, to a bucket where there is one."""
    source = Path(whole.place)
    variables = {**whole.variables, "PUMA_CACHE": str(home / "objects")}
    place = f"s3://bucket/{home.name}" if address else str(home / "store")
    for name in earlier(stage):
        if address:
            upload(address, source / name, f"{home.name}/{name}")
        else:
            shutil.copytree(source / name, home / "store" / name)
    return World(home, stage, place, address, list(whole.settings), variables)
