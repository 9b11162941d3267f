"""A store with a finished run, for what is measured on one: that of PUMA_STORE, or one of the smallest recipe."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def made() -> list[str]:
    """What `run.py` is given to find the run, whose stages are all cached; made on the first call."""
    if given := os.environ.get("PUMA_STORE"):
        return arguments("demo", given, str(Path(given).parent / "mlflow.db"))
    place = tempfile.mkdtemp(prefix="puma-bench-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    found = arguments("smoke", f"{place}/store", f"{place}/mlflow.db")
    call([sys.executable, str(ROOT / "pipeline" / "run.py"), *found])
    return found


def arguments(recipe: str, store: str, database: str) -> list[str]:
    """Which run."""
    return ["--recipe", recipe, f"store={store}", f"tracking_uri=sqlite:///{database}"]


def call(command: list[str]) -> str:
    """What a command prints, which must end well."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{command[1]}: {ended.stderr[-400:]}")
    return ended.stdout
