"""What tests need to run a stage on its own: a store in a directory, a silent tracker, and Ray."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.store import Artifact, Store
from pipeline.execution.shared import SharedArtifacts
from stages.contract.context import Context
from stages.contract.params import Cluster
from stages.distributed.training import CPU_ONLY

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Recorder:
    """A tracker that remembers what it was told."""

    told: dict[str, float] = field(default_factory=dict)
    datasets: list[tuple[str, str, str, str]] = field(default_factory=list)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.told |= values

    def figure(self, name: str, figure: Any) -> None:
        """Not looked at."""

    def text(self, name: str, content: str) -> None:
        """Not looked at."""

    def dataset(self, name: str, source: str, digest: str, role: str) -> None:
        self.datasets.append((name, source, digest, role))

    def handle(self) -> "Recorder":
        return self


def begin(directory: Path, stage: str, inputs: Mapping[str, Artifact] | None = None, **sections: Any) -> Context:
    """A context whose output goes to a store in `directory`; `sections` are the stage's parameters."""
    store = Store(directory)
    output = store.begin(stage, "0123456789ab")
    shared = SharedArtifacts(store, inputs or {}, {}, {}, print)
    return Context(SimpleNamespace(**sections), Cluster(), inputs or {}, output, Recorder(), shared)


def commit(directory: Path, context: Context) -> Artifact:
    """The artifact of what a stage wrote."""
    return Store(directory).commit(context.output, {"metrics": {}})


def rows(artifact: Artifact, prefix: str) -> list[dict[str, Any]]:
    """All rows of a Parquet dataset of an artifact."""
    return pa.concat_tables([pq.read_table(path) for path in artifact.files(prefix)]).to_pylist()


@contextmanager
def ray_cluster(cpus: int = 2, gpus: int = 0) -> Iterator[None]:
    """A cluster of this test's own; it believes in GPUs that are not there."""
    import ray

    ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=True)
    try:
        yield
    finally:
        ray.shutdown()


def in_ranks(
    ranks: int, module: str, case: dict[str, Any], environment: Mapping[str, str] | None = None, seconds: float = 300
) -> None:
    """Runs `python -m MODULE CASE_JSON` in `ranks` processes that can find each other; all must end well in time.

    Processes of their own, because DeepSpeed keeps one process group for a process's life.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= CPU_ONLY | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(case)],
            cwd=ROOT,
            env=os.environ | shared | dict(environment or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


@contextmanager
def joined_ranks(backend: str = "gloo") -> Iterator[None]:
    """Inside a process of `in_ranks`: the process group of all of them.

    The group ends before the process does: gloo's threads do not survive the interpreter, and now and then a process
    that leaves them behind dies of it, its work done (torch issue 190489). After an error it is left: the others may
    be waiting in a collective, and to end the group would wait for them.
    """
    import deepspeed
    from torch import distributed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend)
    yield
    distributed.barrier()
    distributed.destroy_process_group()


def with_own_stdout(main: Callable[..., int], arguments: Sequence[str]) -> int:
    """Runs a command in this process, whose stdout it would leave turned to stderr."""
    stdout = os.dup(1)
    try:
        return main(arguments)
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
