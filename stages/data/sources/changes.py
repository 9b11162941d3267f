"""What a plan looks at to see that an M-BEIR source has changed, in seconds whatever its size.

Up to MOST files, each is looked at: its size and time of change, in a bucket its ETag. Larger sources have pictures by
the million, of which asking each takes a minute on a warm disk and far longer over a network. Of those, folders are
looked at, their number of files and time of change: files that come, go, or take another's place show there, and one
that is written over in place does not. Tables are looked at always. A bucket has no folders: there tables are all.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from stages.data.sources.remote import RemotePath, walk

MOST = 20_000
TABLES = ("query", "cand_pool", "qrels", "instructions")
"""The folders that hold no pictures."""

Seen = tuple[str, int, int | str]
"""(path below the root, bytes or number of files, nanoseconds of the last change or ETag)."""


def of_directory(root: Path) -> list[Seen]:
    """A source on disk; linked folders are not entered."""
    files = (f"{folder}/{name}" for folder, names in walk_folders(root) for name in names)
    few = list(islice(files, MOST + 1))
    if len(few) <= MOST:
        return sorted(stat_below(root, file) for file in few)
    seen: list[Seen] = []
    for folder, names in walk_folders(root):
        # Anything may be put beside the source's folders, so the root's own time says nothing.
        seen.append((folder, len(names), os.stat(f"{root}{folder}").st_mtime_ns if folder else 0))
        if folder.split("/")[1:2] and folder.split("/")[1] in TABLES:
            seen += [stat_below(root, f"{folder}/{name}") for name in names]
    return sorted(seen)


def of_bucket(root: RemotePath) -> list[Seen]:
    """A source in a bucket, by listing alone."""
    few: list[Seen] = list(islice(walk(root), MOST + 1))
    if len(few) <= MOST:
        return sorted(few)
    return sorted((f"{table}/{name}", size, tag) for table in TABLES for name, size, tag in walk(root / table))


def walk_folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder below the root with a slash before it, the names of its files); the root itself is empty."""
    waiting = [str(root)]
    while waiting:
        folder, names = waiting.pop(), []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    names.append(entry.name)
        yield folder.removeprefix(str(root)), names


def stat_below(root: Path, name: str) -> Seen:
    """A file by its name below the root; a link that leads nowhere by itself."""
    path = f"{root}{name}"
    status = os.stat(path, follow_symlinks=os.path.exists(path))
    return name, status.st_size, status.st_mtime_ns
