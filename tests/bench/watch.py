"""Peaks of memory of a run: of its driver, of its workers, and of Ray's object store.

Memory is what only one process holds, resident less shared: the object store and mapped files would otherwise count in
every process that looks into them. The object store is what /dev/shm and the run's own spilled files hold more than
before, so nothing else may run meanwhile. Linux only.
"""

import shutil
import threading
from pathlib import Path
from types import TracebackType

import psutil

SECONDS = 0.5
"""Between two looks."""
SHARED_MEMORY = Path("/dev/shm")
WORKER = "ray::"
"""What Ray calls the processes of tasks and actors."""


class Watch:
    """Looks at a process and what it started for as long as its block lasts.

    Args:
        pid: of the driver.
        spill: a directory below which Ray writes what its object store has no room for.

    Attributes:
        peaks: bytes of the `driver`, the largest `worker`, all `workers` together, `objects` in memory and `spilled`.
    """

    def __init__(self, pid: int, spill: Path) -> None:
        self.process, self.spill = psutil.Process(pid), spill
        self.peaks = dict.fromkeys(("driver", "worker", "workers", "objects", "spilled"), 0)
        self.before = shared_memory()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()

    def _look_on(self) -> None:
        while not self.ended.wait(SECONDS):
            for name, size in self.look().items():
                self.peaks[name] = max(self.peaks[name], size)

    def look(self) -> dict[str, int]:
        """The present sizes."""
        workers = [own_memory(process) for process in self._children() if is_worker(process)]
        return {
            "driver": own_memory(self.process),
            "worker": max(workers, default=0),
            "workers": sum(workers),
            "objects": max(0, shared_memory() - self.before),
            "spilled": sum(size_of(path) for path in self.spill.rglob("ray_spilled_objects*/*")),
        }

    def _children(self) -> list[psutil.Process]:
        try:
            return self.process.children(recursive=True)
        except psutil.Error:  # it has just ended
            return []


def own_memory(process: psutil.Process) -> int:
    """Resident and in no other process; 0 for one that has ended."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return max(0, memory.rss - memory.shared)


def is_worker(process: psutil.Process) -> bool:
    """Whether it is one of Ray's."""
    try:
        return "".join(process.cmdline()[:1]).startswith(WORKER)
    except psutil.Error:
        return False


def shared_memory() -> int:
    """Bytes in use in /dev/shm."""
    return shutil.disk_usage(SHARED_MEMORY).used if SHARED_MEMORY.is_dir() else 0


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
