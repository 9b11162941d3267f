"""Pieces of messages that all rooms use."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(text: object, length: int = 400) -> str:
    """A text (or an error's) without line breaks, cut to a length that a terminal bears."""
    return " ".join(str(text).split())[:length]


def depth_title(curve: Mapping[str, Any]) -> str:
    """What a depth curve's table shows, and on how little."""
    sample = f"{curve['queries']:,} validation queries and {curve['candidates']:,} candidates"
    return f"Depths of the backbone, cut and not trained, on {sample}"


def age_in_words(seconds: float | None) -> str:
    """How long ago, in the largest unit that fits."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size_in_words(size: float) -> str:
    """Bytes with the unit that keeps the number short."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
