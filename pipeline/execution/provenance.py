"""Where and by what a result was made: the state of the code, the versions of packages, the time."""

import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "pyarrow", "mlflow", "numpy", "pillow", "tokenizers")


def git_state() -> dict[str, Any]:
    """The commit of the code and whether files differ from it; empty outside a repository."""
    try:
        return {"commit": ask_git("rev-parse", "HEAD"), "dirty": bool(ask_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def ask_git(*arguments: str) -> str:
    """What git answers in this file's repository."""
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a result, read without importing them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


def now() -> str:
    """The time as ISO 8601 in UTC, sortable as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
