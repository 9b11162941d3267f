"""A stage's own code as a plain loop in one process: what it does without Ray. `python -m tests.bench.bare CASE_JSON`.

Everything that a stage asks of Ray is called at once, here: its tasks, its pool of models, its training process. So
the work is the same to the line, and what a run takes beyond it are processes, their starts, and what passes between
them. Of a run that is finished, each stage but ingest is done anew, into a store that is thrown away; ingest, which
is Ray Data throughout, has a benchmark of its own.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class Task:
    """A function of Ray, called on the spot."""

    def __init__(self, function: Callable[..., Any], streams: bool = False) -> None:
        self.function, self.streams = function, streams

    def options(self, num_returns: Any = None, **unused: Any) -> "Task":
        """What it gives back one by one stays so."""
        return Task(self.function, num_returns == "streaming")

    def remote(self, *arguments: Any) -> Any:
        """The result."""
        return self.function(*arguments)


class Training:
    """What Ray Train knows of a training: its last checkpoint and measures."""

    def __init__(self) -> None:
        self.checkpoint: Any = None
        self.measures: dict[str, Any] = {}

    def report(self, measures: Mapping[str, Any], checkpoint: Any, **unused: Any) -> None:
        """Takes both."""
        self.checkpoint, self.measures = checkpoint, dict(measures)


def without_ray(training: Training) -> None:
    """Puts the stand-in where stages import Ray from."""
    from pyarrow.fs import LocalFileSystem

    names = ("ray", "ray.train", "ray.train.collective", "ray.train.torch", "ray.data")
    ray, train, collective, *others = modules = list(map(ModuleType, names))

    def remote(*functions: Any, **resources: Any) -> Any:
        return Task(*functions) if functions else Task

    def checkpoint(directory: Any) -> SimpleNamespace:
        return SimpleNamespace(path=str(directory), filesystem=LocalFileSystem())

    vars(ray).update(remote=remote, get=lambda one: one, put=lambda one: one, cluster_resources=dict, train=train)
    vars(train).update(report=training.report, get_checkpoint=lambda: None)
    vars(train).update(collective=collective, torch=others[0])
    vars(train).update(Checkpoint=SimpleNamespace(from_directory=checkpoint))
    vars(train).update(CheckpointUploadMode=SimpleNamespace(ASYNC=None))
    vars(collective).update(barrier=lambda: None)
    sys.modules.update(zip(names, modules, strict=True))


def in_place(training: Training) -> None:
    """Has the pool of models and the training process be this process, before the modules that use them are read."""
    from stages.distributed import actors
    from stages.distributed import training as distributed

    def carry_out(
        context: Any, models: Any, work: Sequence[Any], *, alone: Sequence[Any] = (), rows: Any = None, label: str = ""
    ) -> list[Any]:
        given = actors.Models(rows or context.inputs["ingest"], dict(models), context.cluster)
        return [one(given) for one in (*work, *alone)]

    def run_training(context: Any, job: Any) -> tuple[Any, dict[str, Any]]:
        if stopped := distributed.train_rank(job):
            raise SystemExit(stopped)
        return training.checkpoint, training.measures

    actors.carry_out, distributed.run_training = carry_out, run_training


def bare(store: str) -> dict[str, float]:
    """Seconds of each stage but ingest of the newest run of a store."""
    from pipeline.artifacts.store import open_store
    from pipeline.config.sections import Config
    from pipeline.execution.runner import parameters
    from pipeline.execution.shared import SharedArtifacts
    from pipeline.planning.dag import stages_of
    from stages.contract.context import Context
    from tests.support import Recorder

    opened = open_store(store)
    run = opened.runs()[0]
    config, seconds = Config.model_validate(run["config"]), {}
    for stage in stages_of(config)[1:]:
        inputs = {name: opened.artifact(name, run["stages"][name]["key"]) for name in stage.inputs}
        with tempfile.TemporaryDirectory() as place:
            scratch = open_store(place)
            shared = SharedArtifacts(scratch, inputs, {}, {}, print)
            output = scratch.begin(stage.name, run["stages"][stage.name]["key"])
            given = Context(parameters(stage, config), config.cluster, inputs, output, Recorder(), shared)
            start = time.perf_counter()
            stage.load().run(given)
            seconds[stage.name] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    from stages.model.loading import let_threads_sleep
    from tests.support import joined_ranks

    let_threads_sleep()
    case, made = json.loads(sys.argv[1]), Training()
    with joined_ranks():  # before the stand-in: DeepSpeed asks whether there is a Ray
        without_ray(made)
        in_place(made)
        Path(case["result"]).write_text(json.dumps(bare(case["store"])))
