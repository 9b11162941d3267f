"""What can go wrong, each as a block around a running command: it breaks one thing, and mends it when the block ends.

Nothing in the product helps. Processes are found by the titles that Ray gives them, servers stand behind a proxy, and
a disk that gets full is a small file system of its own, which takes root.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.faults.servers import passes
from tests.faults.world import TRAININGS, Fault, Look, World
from tests.s3.servers import Request

NOTICE_SECONDS = 1.0
DISK = "64m"
BALLAST = "ballast"
TASK, EXPORT, RANKING = r"ray::(Map|Read|Write|check)", "ray::_carry_out", "ray::rank_files"
LEDGER, ACTOR = "ray::Ledger", "ray::MapWorker"
WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


def nothing(command: subprocess.Popen) -> None:
    """Only looks on."""


def once(act: Callable[[subprocess.Popen], bool | None], ripe: Callable[[], bool]) -> Iterator[Look]:
    """Gives what does `act` as soon as it is `ripe`, and again while it answers False; fails where it never did."""
    done: list[bool] = []

    def look(command: subprocess.Popen) -> None:
        if not done and ripe() and act(command) is not False:
            done.append(True)

    yield look
    assert done, "the command ended before the fault could meet it"


# ------------------------------------------------------------------------------------------------------ processes


def driver(number: int = signal.SIGKILL) -> Fault:
    """The command itself is ended by a signal."""

    @contextmanager
    def fault(world: World) -> Iterator[Look]:
        yield from once(lambda command: command.send_signal(number), world.is_under_way)

    return fault


def process(title: str, at_once: bool = False) -> Fault:
    """A process of the command's own Ray whose title begins so is killed; `at_once` is as soon as there is one."""

    @contextmanager
    def fault(world: World) -> Iterator[Look]:
        yield from once(lambda command: kill_one(command, title), lambda: at_once or world.is_under_way())

    return fault


def kill_one(command: subprocess.Popen, title: str) -> bool:
    """Kills a process of that title below the command; whether there was one."""
    with suppress(psutil.Error):
        for child in psutil.Process(command.pid).children(recursive=True):
            if re.match(title, " ".join(child.cmdline())):
                child.kill()
                return True
    return False


# ---------------------------------------------------------------------------------------------------------- nodes


@contextmanager
def node_lost(world: World) -> Iterator[Look]:
    """The node that computes dies; another one comes in its place."""

    def act(command: subprocess.Popen) -> None:
        world.servers.lose()
        world.servers.add()

    yield from once(act, world.is_under_way)


@contextmanager
def node_leaves_with_notice(world: World) -> Iterator[Look]:
    """The node that computes is announced to go, as spot nodes are, and goes; another one comes in its place."""

    def act(command: subprocess.Popen) -> None:
        world.servers.warn(NOTICE_SECONDS)
        time.sleep(NOTICE_SECONDS)
        world.servers.lose()
        world.servers.add()

    yield from once(act, world.is_under_way)


@contextmanager
def node_added(world: World) -> Iterator[Look]:
    """A node joins while another one computes."""
    yield from once(lambda command: world.servers.add(), world.is_under_way)


# -------------------------------------------------------------------------------------------------------- servers


def bucket(action: str, every: int = 4, method: str = "") -> Fault:
    """Each so-many-th request to the bucket meets `action` of the proxy."""

    @contextmanager
    def fault(world: World) -> Iterator[Look]:
        met: list[Request] = []

        def rule(request: Request) -> str | None:
            if method and request.method != method:
                return None
            met.append(request)
            return None if len(met) % every else action

        world.servers.proxy.rule = rule
        yield nothing
        world.servers.proxy.rule = passes
        assert len(met) >= every, "no request met the fault"

    return fault


@contextmanager
def server_gone(world: World) -> Iterator[Look]:
    """From the middle on every request to the server is answered 503, until the command has ended."""

    def act(command: subprocess.Popen) -> None:
        world.servers.proxy.rule = lambda request: "503"

    yield from once(act, world.is_under_way)
    world.servers.proxy.rule = passes


def mlflow_away(begins: bool, ends: bool) -> Fault:
    """Connections to MLflow break off at the start, from the middle on, or (both) throughout."""

    def breaks(request: Request) -> str:
        return "reset"

    @contextmanager
    def fault(world: World) -> Iterator[Look]:
        proxy = world.servers.proxy
        proxy.rule = breaks if begins else passes

        def act(command: subprocess.Popen) -> None:
            proxy.rule = breaks if ends else passes

        yield from once(act, world.is_under_way)
        proxy.rule = passes

    return fault


# ------------------------------------------------------------------------------------------------- disk and numbers


@contextmanager
def full_store(world: World) -> Iterator[Look]:
    """The disk of the store gets full in the middle."""
    yield from _full(world, Path(world.place))


@contextmanager
def full_worker(world: World) -> Iterator[Look]:
    """The disk gets full on which a worker writes its checkpoints before they are stored."""
    place = world.home / "temporary"
    world.variables |= {"TMPDIR": str(place), "RAY_TMPDIR": "/tmp"}
    yield from _full(world, place)


@contextmanager
def full_cache(world: World) -> Iterator[Look]:
    """The disk gets full on which a worker keeps what it fetched from the bucket."""
    yield from _full(world, Path(world.variables["PUMA_CACHE"]))


def _full(world: World, place: Path) -> Iterator[Look]:
    small_disk(world, place)
    ballast = place / BALLAST

    def look(command: subprocess.Popen) -> None:
        if ballast.exists() or world.is_under_way():
            fill(ballast)  # again, for what the run deletes makes room

    yield look
    assert ballast.exists(), "the command ended before the fault could meet it"
    ballast.unlink()


def small_disk(world: World, place: Path) -> None:
    """Moves a directory to a small file system of its own, for as long as the world is used."""
    aside = place.with_name(f"{place.name}-aside")
    place.mkdir(parents=True, exist_ok=True)
    place.rename(aside)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], check=True)
    world.later.callback(subprocess.run, ["umount", "--lazy", place], check=True)
    shutil.copytree(aside, place, dirs_exist_ok=True)


def fill(ballast: Path) -> None:
    """Takes all room that is left."""
    for piece in (2**16, 2**9):
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(piece))


@contextmanager
def too_fast(world: World) -> Iterator[Look]:
    """A learning rate from which the loss is NaN after one step; it stays in the settings."""
    section = {"backbone": "backbone.tiny"}.get(world.stage, world.stage)
    assert world.stage in TRAININGS
    world.settings += [f"{section}.learning_rate=1e30", "cluster.checkpoint_every=1"]
    yield nothing
