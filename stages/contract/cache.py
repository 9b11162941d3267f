"""Where copies of data are kept that can be made again: files of a bucket, tables for random access, views of models.

One place for all of them on each node. Its paths mean nothing to other nodes: what workers are to find is handed to
them as `stages.contract.context.Where`.
"""

import os
from pathlib import Path

IN_NO_KEY = True  # where copies lie


def cache_root() -> Path:
    """PUMA_CACHE, else `puma` in the user's cache directory."""
    if chosen := os.environ.get("PUMA_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puma"
