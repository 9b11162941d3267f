"""Where this machine keeps copies of files from object storage, and the work of stages whose store lies there.

Copies may fill a disk but for its `FREE_SHARE`: then each new one takes the place of those that nobody asked for
longest. So a node that lives through many runs needs no care, and a bound follows from its disk.
"""

import shutil
import time
from collections import defaultdict
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pipeline.artifacts.objects import translate_os_errors
from stages.contract.cache import cache_root

COPY_DAYS = 30  # since a copy was last asked for
FREE_SHARE = 0.1
"""Of the cache's disk: what copies leave free."""
OPENING_SECONDS = 3600
"""A copy that was asked for so lately stays: whoever asked may not have opened it yet. Open files outlive a name."""


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


def make_room(wanted: int) -> int:
    """Deletes the copies that nobody asked for longest until `wanted` bytes more leave the disk its share; the bytes.

    Where that is not enough the disk fills further: a run may need all of its copies at once.
    """
    disk = shutil.disk_usage(ensure_dir(cache_root()))
    missing, gained = wanted + FREE_SHARE * disk.total - disk.free, 0
    if missing <= 0:
        return 0
    latest = time.time() - OPENING_SECONDS
    for asked, size, names in sorted(all_copies()):
        if asked > latest or gained >= missing:
            break
        for name in names:
            with suppress(OSError):  # another process may be at it too
                name.unlink()
        gained += size
    return gained


def all_copies() -> list[tuple[float, int, list[Path]]]:
    """(when it was last asked for, bytes, its names) of each copy."""
    found: dict[int, list[Path]] = defaultdict(list)
    facts = {}
    for path in [path for name in ("files", "work") for path in (cache_root() / name).rglob("*")]:
        with suppress(OSError):
            about = path.lstat()
            if path.is_file() and not path.name.startswith("."):
                found[about.st_ino].append(path)
                facts[about.st_ino] = about
    kept = cache_root() / "files"
    return [
        (facts[node].st_mtime, facts[node].st_size, names)
        for node, names in found.items()
        if any(kept in name.parents for name in names)  # all else below `work` is the work of stages
    ]
