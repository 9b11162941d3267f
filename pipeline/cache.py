"""Where this machine keeps copies of files from object storage, and the work of stages whose store lies there."""

from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.objects import told
from stages.cache import cache_root


def told_locally() -> AbstractContextManager[None]:
    """A full or read-only cache in one line."""
    return told(f"the cache {cache_root()} (PUMA_CACHE)")


def made(directory: Path) -> Path:
    """The directory, made where it isn't."""
    with told_locally():
        directory.mkdir(parents=True, exist_ok=True)
    return directory
