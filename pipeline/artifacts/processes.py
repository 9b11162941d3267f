"""Processes distinguished across machines and time: a number alone means another process after a restart."""

import getpass
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

UNKNOWN = "alive"


def user() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "somebody"


@cache
def machine() -> str:
    """This machine, as far as process numbers mean the same: its name, its start, its space of processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def this_process() -> dict[str, Any]:
    """By what others find out later whether this process still runs."""
    return {"machine": machine(), "process": [os.getpid(), process_start(os.getpid())]}


def has_ended(facts: Mapping[str, Any]) -> bool:
    """Whether `this_process` gave the facts on this machine, in a process that runs no more."""
    return facts.get("machine") == machine() and not is_running(*facts["process"])


def is_running(process: int, start: str) -> bool:
    """Whether the process of this machine that started then still runs; in doubt it does."""
    found = process_start(process)
    return bool(found) and (found == start or UNKNOWN in (found, start))


def process_start(process: int) -> str:
    """When a process of this machine started, so that a number used again is not taken for it; empty where none is.

    UNKNOWN where it runs and the system does not say: /proc mounted with hidepid hides the processes of other users.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]  # a dead one that nobody fetched counts as dead
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return UNKNOWN
