"""`tests/gpu/run.sh`: what can be told of it without a GPU."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "gpu" / "run.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")
LEASE = 480
"""Seconds for all of it, of which some thirty go to unpacking."""


def test_it_can_be_read_by_the_shell_and_says_how_it_is_called():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    wrong = subprocess.run(["bash", str(SCRIPT), "faster"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "pack|run|dry" in wrong.stderr


def test_its_parts_end_in_time():
    limits = [int(seconds) for seconds in re.findall(r"_SECONDS:-(\d+)", TEXT)]
    assert len(limits) == 2 and sum(limits) <= LEASE - 30


def test_what_it_packs_has_the_versions_of_the_project():
    wanted = re.search(r"PACKAGES=\((.*?)\)", TEXT, re.DOTALL)[1].split()
    pinned = {canonical(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {canonical(name) for name in wanted} <= pinned
    assert {"ray", "mlflow", "transformers"} <= set(wanted)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
