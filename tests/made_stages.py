"""A small graph of made-up stages, and what runs it without a cluster or a tracking server."""

import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.artifacts.store import Store, open_store
from pipeline.execution.runner import Run, run_pipeline
from pipeline.planning.dag import Stage
from pipeline.planning.plan import Selection, plan
from pipeline.planning.sources import read_sources
from stages.contract.context import InputError, StageError
from stages.contract.params import Cluster, Section

MODULE = """
from stages.contract.params import Section

VERSION = 1


class Params(Section):
    word: str = "hello"


def run(context):
    from fakes import hooks

    read = [context.inputs[name].read_json("said.json") for name in context.inputs]
    section = next(iter(vars(context.params)))
    (context.output.work / "progress").open("a").write("x")
    context.output.write_json("early.json", {})
    hooks.call("NAME", context)
    context.output.write_json("said.json", [*read, getattr(context.params, section).word])
    rejects = {"candidates": 1, "queries": 0, "by_reason": {"bad id": 1}}
    context.output.write_json("stats.json", {"rejects": rejects})
    metrics = hooks.measure(read[-1][-1] if read else "")
    context.output.write_json("metrics.json", metrics)
    context.output.write_json("model/config.json", {})
    context.output.write_bytes("table.txt", b"the table")
    context.tracker.metrics({"loss": 1.0}, step=1)
    return {"size": 3, **metrics}
"""
HOOKS = """
calls, actions, quality = [], {}, {}


def call(name, context):
    calls.append(name)
    actions.get(name, lambda _: None)(context)


def measure(word):
    hit = quality.get(word, 0.5)
    pool = {"hit@5": hit, "tasks": {"a": {"hit@5": hit}}}
    size = {"layers": 2, "parameters": 10, "latency_ms": {"median": 3.0}}
    chance = {"local": {"hit@5": 0.1}, "union": {"hit@5": 0.05}}
    return {"student": {**size, "local": pool, "union": pool}, "chance": chance}
"""
STAGES = (
    Stage("ingest", "fakes.ingest", (), ("data",)),
    Stage("train", "fakes.train", ("ingest",), ("train",)),
    Stage("evaluate", "fakes.evaluate", ("ingest", "train"), ("evaluate",)),
)


class Words(Section):
    kind: str = "scenes"
    word: str = "hello"
    register_as: str = "student"
    register_alias: str = "auto"
    check_loaders: bool = True


class Small(Section):
    store: str = ""
    store_endpoint: str = ""
    tracking_uri: str = ""
    data: Words = Words()
    train: Words = Words()
    evaluate: Words = Words()
    cluster: Cluster = Cluster()


DEFAULT = Small()


class Tracked:
    """Remembers what would be tracked."""

    def __init__(self, log: list, name: str = "run") -> None:
        self.log, self.name, self.run_id = log, name, f"mlflow-{name}"

    def stage(self, name: str, tags: dict) -> "Tracked":
        self.log.append((name, "stage", tags["cache"]))
        return Tracked(self.log, name)

    def child(self, name: str, tags: dict) -> "Tracked":
        self.log.append((name, "child", tags["cache"]))
        return Tracked(self.log, name)

    def ids(self) -> dict[str, str]:
        return {"experiment_id": "1", "run_id": self.run_id, "tracking_uri": "made"}

    def is_registered(self, *asked: Any) -> bool:
        """Name, tags and alias; `register` gives them with other things between."""
        done = [entry for entry in self.log if entry[:2] == (self.name, "register")]
        return asked in [(name, tags, alias) for _, _, name, tags, _, _, alias in done]

    def register(self, *values: Any, alias: str) -> None:
        self.log.append((self.name, "register", *values, alias))

    def __getattr__(self, verb: str) -> Any:
        return lambda *values, **named: self.log.append((self.name, verb, *values))


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    package = tmp_path / "code" / "fakes"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "hooks.py").write_text(HOOKS)
    for stage in STAGES:
        (package / f"{stage.name}.py").write_text(MODULE.replace("NAME", stage.name))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield __import__("fakes.hooks", fromlist=["calls"])
    for name in [name for name in sys.modules if name.split(".")[0] == "fakes"]:
        del sys.modules[name]


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path / "store"))


@contextmanager
def no_cluster(cluster: Cluster):
    yield


def go(store: Store, tmp_path: Path, config: Small = DEFAULT, connect=no_cluster, **selection: Any) -> SimpleNamespace:
    sources = read_sources(STAGES, config, tmp_path / "code")
    decisions = plan(STAGES, config, store.manifests(), sources, Selection(**selection))
    log: list = []
    run = Run(config, store, Tracked(log), connect, say=lambda line: log.append(("say", line)))
    error = None
    try:
        run_pipeline(STAGES, decisions, run)
    except (StageError, InputError, KeyboardInterrupt) as caught:
        error = caught
    return SimpleNamespace(run=run, log=log, error=error, stages=run.stages)


def fail(error: BaseException):
    def action(context):
        raise error

    return action
