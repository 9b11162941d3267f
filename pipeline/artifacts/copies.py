"""Where this machine keeps copies of files from object storage, and the work of stages whose store lies there."""

import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pipeline.artifacts.objects import translate_os_errors
from stages.contract.cache import cache_root

COPY_DAYS = 30  # since a copy was last asked for


def translate_cache_errors() -> AbstractContextManager[None]:
    """A full or read-only cache in one line."""
    return translate_os_errors(f"the cache {cache_root()} (PUMA_CACHE)")


def ensure_dir(directory: Path) -> Path:
    """The directory, which is there afterwards."""
    with translate_cache_errors():
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def expire_copies() -> int:
    """Deletes copies of a bucket's files, and work of killed stages, that nobody used for long; the bytes gained.

    A file has two names, by its checksum and in its artifact; both are of one age, which `S3Objects.local` renews.
    """
    oldest, gained = time.time() - COPY_DAYS * 86_400, 0
    for path in [path for name in ("files", "work", "unfinished") for path in (cache_root() / name).rglob("*")]:
        with suppress(OSError):  # another process may be at it too
            facts = path.lstat()
            if not path.is_dir() and facts.st_mtime < oldest:
                path.unlink()
                gained += facts.st_size if facts.st_nlink == 1 else 0
    return gained
