"""The bound of a node's copies: which of them go when the disk is full."""

import os
import time
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline.artifacts import copies

Usage = namedtuple("Usage", "total used free")
DAY = 86_400


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path))
    return tmp_path


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A disk of a thousand bytes, a tenth of which copies leave free."""
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: Usage(1000, 1000 - free, free))


def copy(cache: Path, name: str, size: int, age: float) -> tuple[Path, Path]:
    """A file by its checksum and by its name in an artifact, last asked for so long ago."""
    kept, named = cache / "files" / name[:2] / name, cache / "work" / "bucket" / "train" / name
    for place in (kept, named):
        place.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(bytes(size))
    os.link(kept, named)
    os.utime(kept, (time.time() - age,) * 2)
    return kept, named


def test_a_disk_with_room_keeps_all_copies(cache, monkeypatch):
    old = copy(cache, "old", 50, 9 * DAY)
    disk(monkeypatch, free=300)
    assert copies.make_room(200) == 0
    assert all(place.exists() for place in old)


def test_what_nobody_asked_for_longest_goes_first_and_no_more_than_is_needed(cache, monkeypatch):
    middle, oldest, newer = (copy(cache, f"{age}", 50, age * DAY) for age in (5, 9, 2))
    disk(monkeypatch, free=120)
    assert copies.make_room(100) == 100
    assert not any(place.exists() for place in (*oldest, *middle))
    assert all(place.exists() for place in newer)


def test_what_was_just_asked_for_and_the_work_of_stages_stay(cache, monkeypatch):
    fresh = copy(cache, "fresh", 50, 60)
    work, lock = cache / "work" / "bucket" / "train" / "_work" / "state", cache / "files" / "fr" / ".fresh.lock"
    work.parent.mkdir()
    for place in (work, lock):
        place.write_bytes(bytes(50))
        os.utime(place, (0, 0))
    disk(monkeypatch, free=0)
    assert copies.make_room(500) == 0
    assert all(place.exists() for place in (*fresh, work, lock))
