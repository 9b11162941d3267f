"""Who computes an artifact: one holder for each key, which renews its lease until it is done.

A lease is a small object beside the artifact. It is taken by a conditional create, or, where it is free or its holder
is gone, by a conditional swap of what was seen: of many takers one wins. A holder is gone when it has not renewed for
`SECONDS`, by the clock of the place and not of any machine, or at once where it was a process of this machine that
does not live any more. A lock file was the alternative: on object stores there is none, and it can't say for whom one
waits. A holder that finds its lease taken stops, and does not commit.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.artifacts.objects import Objects
from pipeline.artifacts.processes import has_ended, this_process, user
from stages.contract.context import InputError, StageError

SECONDS = 60.0
POLL = 0.5
LEASE = "_lease.json"


class LeaseLost(StageError):
    """Another run took the lease over while this one was out of reach."""


@dataclass
class Lease:
    """A held lease; made by `acquire` and `try_acquire`."""

    objects: Objects
    path: str
    facts: dict[str, Any]
    tag: str
    seconds: float = SECONDS
    lost: bool = False
    renewed: float = field(default_factory=time.monotonic)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        """Writes the lease again. Raises LeaseLost where it belongs to somebody else, or was out of reach too long."""
        with self.guard:
            if not self.lost:
                asked, fresh = time.monotonic(), {**self.facts, "renewed": uuid.uuid4().hex}
                if tag := self.objects.swap(self.path, encode(fresh), self.tag):
                    self.tag, self.renewed = tag, asked
                else:
                    self.lost = True
        if self.lost:
            raise LeaseLost(f"another run took over {self.path.rpartition('/')[0]}; the same command waits for it")

    def keep(self, done: threading.Event) -> None:
        """Renews until `done` or lost."""
        while not self.lost and not done.wait(self.seconds / 4):
            with suppress(Exception):  # out of reach, or lost: `watch` sees to both
                self.renew()

    def watch(self, done: threading.Event, on_loss: Callable[[], None]) -> None:
        """Calls `on_loss` once the lease is lost, or out of reach so long that others may soon take it.

        A thread of its own: a server that takes a connection and never answers holds up whoever renews for minutes.
        """
        while not done.wait(self.seconds / 20):
            self.lost = self.lost or time.monotonic() - self.renewed > self.seconds * 0.8
            if self.lost:
                return on_loss()
        return None

    def release(self) -> None:
        """Frees the lease if it is still held; if not even that can be written, it grows old by itself."""
        with self.guard, suppress(StageError, InputError, OSError):
            if not self.lost:
                self.objects.swap(self.path, encode({**self.facts, "state": "free"}), self.tag)


@contextmanager
def acquire(
    objects: Objects, path: str, say: Callable[[str], None], what: str, seconds: float = SECONDS
) -> Iterator[Lease]:
    """Waits for the lease at `path`, says once for whom and since when, and keeps it until the block ends.

    In the main thread a lost lease ends the block by KeyboardInterrupt; `lease.lost` distinguishes it from the user's,
    and it leaves the block as LeaseLost.
    """
    named: set[str] = set()
    while (lease := try_acquire(objects, path, seconds)) is None:
        other = holder(objects, path, seconds)
        if other and other["token"] not in named:
            named.add(other["token"])
            say(f"{what}: waiting for {other['holder']}, who computes it since {other['since']}")
        time.sleep(POLL)
    with stoppable() as stop, keep_alive(lease, stop):
        try:
            yield lease
        except KeyboardInterrupt as error:
            if lease.lost:
                raise LeaseLost(f"another run took over {what} while this one was out of reach") from error
            raise


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Gives what ends the block from another thread, by KeyboardInterrupt; it does nothing outside the main thread.

    By SIGUSR1 and not by SIGINT: scripts start background jobs that ignore that one, and Ray Train takes it over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    thread, before = threading.get_ident(), signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield lambda: signal.pthread_kill(thread, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)


@contextmanager
def keep_alive(lease: Lease, on_loss: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Renews a lease until the block ends, then frees it; one whose renewal hangs is left to grow old."""
    done = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(done,), daemon=True, name="lease")
    watcher = threading.Thread(target=lease.watch, args=(done, on_loss), daemon=True, name="lease watch")
    keeper.start()
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        keeper.join(0 if lease.lost else lease.seconds)
        if not keeper.is_alive():
            lease.release()


def try_acquire(objects: Objects, path: str, seconds: float = SECONDS) -> Lease | None:
    """The lease, if it is to be had now."""
    facts = {
        "state": "held",
        "token": uuid.uuid4().hex,
        "holder": f"{user()} on {socket.gethostname()} (process {os.getpid()})",
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        **this_process(),
        "renewed": "",
    }
    found = objects.read(path, clock=True)
    if found is None:
        tag = objects.create(path, encode(facts))
    elif is_expired(found.data, found.age, seconds):
        tag = objects.swap(path, encode(facts), found.tag)
    else:
        return None
    return Lease(objects, path, facts, tag, seconds) if tag else None


def is_expired(data: bytes, age: float, seconds: float = SECONDS) -> bool:
    """Whether a lease as it was read may be taken over: released, too old, or of a process that ended here."""
    facts = decode(data)
    return facts.get("state") != "held" or age > seconds or has_ended(facts)


def holder(objects: Objects, path: str, seconds: float = SECONDS) -> dict[str, Any] | None:
    """Who holds the lease at `path` now; None where nobody does."""
    found = objects.read(path, clock=True)
    return None if found is None or is_expired(found.data, found.age, seconds) else decode(found.data)


def encode(facts: dict[str, Any]) -> bytes:
    """A lease as it is stored."""
    return json.dumps(facts, indent=1).encode()


def decode(data: bytes) -> dict[str, Any]:
    """The facts in a lease; nothing where it holds something else."""
    try:
        facts = json.loads(data)
    except ValueError:
        return {}
    whole = isinstance(facts, dict) and {"token", "holder", "since", "machine", "process"} <= facts.keys()
    return facts if whole else {}
