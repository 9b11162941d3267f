"""Where this machine keeps copies of files from object storage, and the work of stages whose store lies there."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.objects import told


def cache_root() -> Path:
    """Where this machine keeps copies and work: PUMA_CACHE, else `puma` in the user's cache directory."""
    if chosen := os.environ.get("PUMA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puma"


def told_locally() -> AbstractContextManager[None]:
    """A full or read-only cache in one line."""
    return told(f"the cache {cache_root()} (PUMA_CACHE)")


def made(directory: Path) -> Path:
    """The directory, made where it isn't."""
    with told_locally():
        directory.mkdir(parents=True, exist_ok=True)
    return directory
