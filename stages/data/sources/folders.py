"""A folder of pictures: which of its files are pictures, and what a person should know of the others.

On disk a file that is not called like a picture is opened, and its first bytes decide; in a bucket, where that takes a
request for each, names decide alone. Hidden files are passed over: macOS puts `._photo.jpg` beside each picture that
it copies. Linked folders are not entered, so that no link leads around in circles or out, nor can those be that may
not be read; a note names both.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from stages.data.formats import ENDINGS, ENOUGH, is_picture
from stages.data.sources.columns import PARQUET_LIST, PICTURE_LISTS
from stages.data.sources.remote import LINKED, Place, walk

ENDINGS_SHOWN = 5
CLOSED = "chmod -R u+rX {}, or ask its owner to let you read it"
"""What helps where folders may not be read."""


def list_pictures(root: Place, look: bool = False) -> Iterator[str]:
    """Paths below `root` of pictures, sorted; a bucket's own order is kept, and to know of one picture takes one page.

    Args:
        root: the folder.
        look: whether files that are not called like pictures are opened, where that is cheap.
    """
    return (path for path, kind in sort_files(root, look) if kind == "picture")


def sort_files(root: Place, look: bool) -> Iterator[tuple[str, str]]:
    """(path below `root`, kind) of all that is not hidden: `picture`, `other`, or a folder that is not entered, `link`
    for one elsewhere and `closed` for one that may not be read."""
    return _local(root, look) if isinstance(root, Path) else _remote(root)


def is_named(path: str) -> bool:
    """Whether a file is called like a picture, and neither it nor a folder above is hidden."""
    return path.lower().endswith(ENDINGS) and not _is_hidden(path)


def walk_named(root: Path) -> Iterator[tuple[str, int]]:
    """(folder, number of its files that are called like pictures) of all folders that are not hidden, sorted."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder, sum(is_named(name) for name in names)


def notes(pictures: int, others: list[tuple[str, str]], root: Place) -> list[str]:
    """Lines about files that are no pictures, folders not entered, and records that nobody reads; `others` by kind."""
    files, links, closed = ([path for path, one in others if one == kind] for kind in ("other", "link", "closed"))
    lines = []
    if files:
        counted = Counter(PurePosixPath(path).suffix.lower() or "no ending" for path in files)
        most = sorted(counted, key=lambda ending: (-counted[ending], ending))[:ENDINGS_SHOWN]
        shown = [f"{ending} {counted[ending]}" for ending in most]
        shown += ["others"] if len(counted) > ENDINGS_SHOWN else []
        lines.append(f"{len(files)} files beside {pictures} pictures are none and left out ({', '.join(shown)})")
    if links:
        lines.append(f"linked folders are not entered: {_first(links)}; {LINKED.format(root)}")
    if closed:
        lines.append(f"folders that may not be read are left out: {_first(closed)}; {CLOSED.format(root)}")
    if unread := next((path for path in files if PurePosixPath(path).name.lower() in PICTURE_LISTS), None):
        lines.append(f"{unread} is not read: give its folder, {root / str(PurePosixPath(unread).parent)}, to read it")
    if unread := next((path for path in files if PurePosixPath(path).name.lower() == PARQUET_LIST), None):
        lines.append(f"{unread} is not read: write its rows as {PICTURE_LISTS[1]} to have the texts of the pictures")
    return lines


def _first(paths: list[str]) -> str:
    """One path, and how many others there are."""
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _local(root: Path, look: bool) -> Iterator[tuple[str, str]]:
    closed: list[OSError] = []
    for folder, inner, names in os.walk(root, onerror=closed.append):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            place = os.path.join(folder, name)
            found = name.lower().endswith(ENDINGS) or (look and _starts_like_one(place))
            yield os.path.relpath(place, root), "picture" if found else "other"
        for name in inner:
            if os.path.islink(place := os.path.join(folder, name)):
                yield os.path.relpath(place, root), "link"
    for error in closed:
        yield os.path.relpath(error.filename, root), "closed"


def _starts_like_one(place: str) -> bool:
    """Whether a file's first bytes are a picture's; what can't be opened is none."""
    try:
        if not os.path.isfile(place):  # a pipe would never answer
            return False
        with open(place, "rb") as file:
            return is_picture(file.read(ENOUGH))
    except OSError:
        return False


def _remote(root: Place) -> Iterator[tuple[str, str]]:
    for path, *_ in walk(root):
        if not _is_hidden(path) and not path.endswith("/"):
            yield path, "picture" if is_named(path) else "other"


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
