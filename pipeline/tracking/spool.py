"""What could not be sent to MLflow yet, as lines on this machine's disk; the next run that reaches it sends them.

Each process appends to a file of its own, so nobody waits for anybody. A file is sent once its writer has ended: line
by line, with the place reached written down after each, so that a delivery that breaks off goes on where it was. Runs
that were made without a server have names of their own until then; `ids.json` holds MLflow's names for them. What a
training process told of such a run waits until the run has been sent, which its driver's file does.
The files are this machine's alone, for a writer is known by its process, and so not below PUMA_CACHE, which nodes may
share.
MLflow's own asynchronous logging was the alternative: its queue is in memory, and it can't make a run.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.artifacts.processes import is_running, process_start

KEEP_DAYS = 60
OFFLINE = "offline-"  # how the ids of runs begin that no server knows yet
REGISTERED = "registered"  # the tag of a run that registered a student: what it registered
Event = dict[str, Any]


class Spool:
    """The unsent events for one address."""

    def __init__(self, uri: str) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.directory = Path(home) / "puma" / "tracking" / hashlib.sha256(uri.encode()).hexdigest()[:12]

    @property
    def path(self) -> Path:
        """This process's file."""
        return self.directory / f"{os.getpid()}-{process_start(os.getpid())}.jsonl"

    def write(self, event: Event) -> None:
        """Appends an event. A disk that can't take it must not stop the run."""
        with suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(event, ensure_ascii=False)}\n")

    def ids(self) -> dict[str, str]:
        """What became of the runs that were made without a server: their name here → MLflow's."""
        return read_json(self.directory / "ids.json", {})

    def deliver(self, apply: Callable[[Event], Any], answers: Callable[[], bool]) -> int:
        """Sends what ended processes left, oldest first; returns how many events arrived.

        `apply` sends one event. One that it can't send although the server `answers` is dropped: the server will never
        take it.
        """
        files = [path for path in self.directory.glob("*.jsonl") if not alive(path.stem)]
        if not files:
            return 0
        try:
            with FileLock(self.directory / "lock", timeout=0):
                files = sorted(files, key=begun)  # under the lock: another run may have sent some until here
                return sum(self._deliver_file(path, apply, answers) for path in files if path.exists())
        except Timeout:  # another run is at it
            return 0

    def _deliver_file(self, path: Path, apply: Callable[[Event], Any], answers: Callable[[], bool]) -> int:
        place = path.with_suffix(".sent")
        sent, arrived, ids, unregistered = read_json(place, 0), 0, self.ids(), False
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a text may hold other ends of lines
        for number, line in enumerate(lines[sent:], start=sent + 1):
            event = parsed(line)
            if waits(event, ids):
                return arrived
            made = event.get("run", "")  # a run that is refused keeps its own name, by which the rest is refused too
            try:
                if not (unregistered and REGISTERED in event.get("tags", {})):  # else no later run would try again
                    made = apply(renamed(event, ids))
                    arrived += 1
            except Exception:  # whatever MLflow or the network may raise
                if not answers():
                    return arrived
                unregistered = unregistered or event.get("verb") == "register"
            if event.get("verb") == "create":
                ids[event["run"]] = made
                write_json(self.directory / "ids.json", ids)
            write_json(place, number)
        path.unlink(missing_ok=True)
        place.unlink(missing_ok=True)
        return arrived

    def expire(self) -> None:
        """Deletes what nobody could send for a long time."""
        oldest = time.time() - KEEP_DAYS * 86_400
        for path in self.directory.glob("*.jsonl"):
            with suppress(FileNotFoundError):  # another run may send it just now
                if path.stat().st_mtime < oldest:
                    path.unlink()


def alive(writer: str) -> bool:
    """Whether the process that a file is named after still runs."""
    process, _, start = writer.partition("-")
    return is_running(int(process), start)


def parsed(line: str) -> Event:
    """An event; empty where its writer was killed in the middle of the line."""
    try:
        return json.loads(line)
    except ValueError:
        return {}


def begun(path: Path) -> int:
    """When the first event of a file happened: a run is made before its processes tell anything. 0 of no file."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        return parsed(file.readline()).get("at", 0)
    return 0


def waits(event: Event, ids: Mapping[str, str]) -> bool:
    """Whether an event tells numbers of a run that has not been sent yet."""
    run = event.get("run", "")
    return event.get("verb") == "metrics" and run.startswith(OFFLINE) and run not in ids


def renamed(event: Event, ids: Mapping[str, str]) -> Event:
    """The event with MLflow's names of runs, also in its tags."""
    tags = {name: ids.get(value, value) for name, value in event.get("tags", {}).items()}
    run = event["run"] if event["verb"] == "create" else ids.get(event["run"], event["run"])
    return {**event, "run": run, **({"tags": tags} if tags else {})}


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file, or the default where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file at once."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value), encoding="utf-8")
    fresh.replace(path)
