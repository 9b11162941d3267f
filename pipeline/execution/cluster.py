"""Ray: a cluster of its own for a run on one machine, or the one that the run was sent to.

Ray is started by the first stage that has to run, never for a plan or a run whose stages are all cached.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.execution.compat import filter_worker_lines, inside_job, quiet_loggers
from pipeline.execution.errors import explain
from stages.contract.context import StageError
from stages.contract.params import Cluster, cores

ROOT = Path(__file__).resolve().parents[2]
MACHINERY = ("TrainController", "PlacementGroupCleaner")
BOOKKEEPING = re.compile(
    r"\.cc:\d+: |^USDT:|^Setting up process group|^Checkpoint successfully created|^Reporting training result"
)


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Connects to Ray for the block, and shuts down what it started."""
    local = not inside_cluster()
    os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")  # read when Ray is imported
    if local:
        # Workers of a local cluster inherit the driver's environment. A runtime environment would do the same
        # through an agent process and throw away the workers that Ray has started in advance.
        os.environ.update(local_environment() | worker_environment(cluster))
    import ray
    import ray.data

    quiet_loggers()
    try:
        ray.init(**(local_options(cluster) if local else remote_options(cluster)))
    except Exception as error:  # whatever Ray raises for an address, a token or a port
        place = "on this machine" if local else f"at {os.environ.get('RAY_ADDRESS', 'the job')}"
        raise StageError(f"Ray could not be started {place}: {explain(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = sys.stdout.isatty()
    filter_worker_lines(stage_lines)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    try:
        use_up_restart_warning()
        yield
    finally:
        ray.shutdown()


def gpus_asked(cluster: Cluster, kinds: Sequence[str]) -> tuple[float, str]:
    """How many GPUs the settings ask for, and which do, in words; `kinds` are the settings that count."""
    processes, name = max((getattr(cluster, kind), kind) for kind in kinds)
    share, asked = cluster.gpus_per_worker, processes * cluster.gpus_per_worker
    return asked, f"cluster.{name}={processes} with cluster.gpus_per_worker={share:g} ask for {asked:g} GPUs"


def cpus_asked(cluster: Cluster) -> tuple[float, str]:
    """The same of CPUs, which training processes are given."""
    asked = cluster.workers * cluster.cpus_per_worker
    words = f"cluster.workers={cluster.workers} with cluster.cpus_per_worker={cluster.cpus_per_worker:g}"
    return asked, f"{words} ask for {asked:g} CPUs"


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM, by which Kubernetes ends a pod, as Ctrl-C: the run is recorded. Ray's own handler dies with a stack."""
    raise KeyboardInterrupt


def stage_lines(batch: Mapping[str, Any]) -> list[str]:
    """The lines that stages wrote, of a batch that a worker printed; the rest stays in Ray's session directory."""
    if batch["pid"] == "raylet" or batch.get("actor_name") in MACHINERY:
        return []
    return [line for line in batch["lines"] if not BOOKKEEPING.search(line)]


def inside_cluster() -> bool:
    """Whether the run was given a cluster: by RAY_ADDRESS, which Ray also sets for a submitted job."""
    return bool(os.environ.get("RAY_ADDRESS")) or inside_job()


def local_options(cluster: Cluster) -> dict[str, Any]:
    """`address="local"`: without it Ray joins whatever cluster last ran on this machine, even a dead one."""
    return {
        "address": "local",
        "num_cpus": logical_cpus(cluster),
        # Ray Train's clean-up asks the dashboard's state API and warns every second without one.
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "logging_level": "warning",
    }


def remote_options(cluster: Cluster) -> dict[str, Any]:
    """Joins the given cluster. A submitted job brings its working directory; without one the code is sent along."""
    environment: dict[str, Any] = {"env_vars": worker_environment(cluster)}
    if not inside_job():
        environment["py_modules"] = [str(ROOT / "pipeline"), str(ROOT / "stages")]
    return {"logging_level": "warning", "runtime_env": environment}


def logical_cpus(cluster: Cluster) -> int:
    """How many CPUs Ray may hand out on this machine.

    At least four, even on two cores: an embedding actor holds one, a Ray Data read and a write task one each, and a
    pipeline whose actors hold every CPU waits for ever (ray #44687). Threads, not these, decide who computes when.
    """
    trainer = cluster.workers * cluster.cpus_per_worker + 1  # the training processes and their coordinator
    return int(max(4, cores(), cluster.actors + 3, -(-trainer // 1)))


def worker_environment(cluster: Cluster) -> dict[str, str]:
    """Environment variables of every worker process."""
    if cluster.gpus_per_worker:
        return {}
    # Idle OpenMP threads spin by default and take the core from the process that has work.
    chosen = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(cluster.threads_each(cluster.workers))}
    return {"DS_ACCELERATOR": "cpu", **{name: os.environ.get(name, value) for name, value in chosen.items()}}


def local_environment() -> dict[str, str]:
    """Environment variables of a cluster of our own: quiet, and the code importable from anywhere."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def use_up_restart_warning() -> None:
    """Has Ray print unseen what it prints once in every driver: an error line at the first pool of Ray Data's actors.

    It says that actors that may restart have arguments in the object store, which is so for every such pool
    (ray #57733). It comes from Ray's C++ core, where no logger of Python can filter it; Ray's log file of the driver
    has it too. The actor that draws it asks for a resource that no node has, so no process is started for it.
    """
    import ray

    actor = ray.remote(num_cpus=0, resources={"nowhere": 1}, max_restarts=1)(Unplaced)
    argument = ray.put(None)
    with silent_stderr():
        handle: Any = actor.remote(argument)
    ray.kill(handle)


class Unplaced:
    """An actor that is never started."""

    def __init__(self, argument: None) -> None:
        """Takes what lies in the object store."""


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Drops what this process writes to stderr, also by libraries of C++."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
