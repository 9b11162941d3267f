"""Commands spare the garbage collector, each before its first large import."""

import atexit
import gc
from pathlib import Path

import pytest

from pipeline import collector

COMMANDS = ("run", "search", "serve", "store", "graft", "ablate")


def test_a_command_collects_seldom_and_not_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    at_end, before = [], gc.get_threshold()
    monkeypatch.setattr(atexit, "register", at_end.append)
    try:
        collector.spare_collector()
        assert gc.get_threshold()[0] == collector.OBJECTS
    finally:
        gc.set_threshold(*before)
    assert at_end == [gc.freeze]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_spares_it_before_it_imports_anything_large(command: str) -> None:
    source = Path(collector.__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    first = next(
        line for line in source.splitlines() if line.lstrip().startswith(("from pipeline", "import pipeline"))
    )
    assert first.strip() == "from pipeline.collector import spare_collector"
