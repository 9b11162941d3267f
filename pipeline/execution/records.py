"""Runs that were killed before they could say so: the next run on the store marks them `interrupted`.

A record says `running` until its run ends. A run of this machine is dead when its process is; one of another machine
when its record is old and it holds the lease of none of its stages, since a run rewrites its record after each stage
and holds a lease during one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pipeline.artifacts import leases
from pipeline.artifacts.manifests import RUNS, decode_run, encode_run
from pipeline.artifacts.objects import Found
from pipeline.artifacts.processes import has_ended, machine
from pipeline.artifacts.store import Store
from stages.contract.context import StageError

RECENT = 30  # records that are looked at, the newest; each is a request to the store
QUIET_SECONDS = 600


def mark_killed(store: Store, end_tracked: Callable[[str], None], tracking_uri: str) -> list[str]:
    """Gives dead runs their end, in the store and in the MLflow at `tracking_uri` (`end_tracked(run id)`) if they were
    tracked there; returns their ids.

    A record that was written since it was read is left as it is: its run lives, or said itself how it ended.
    """
    marked = []
    for path, found, record in recent_runs(store):
        if record["status"] != "running" or not is_dead(store, record, found.age):
            continue
        if store.objects.swap(path, encode_run({**record, "status": "interrupted"}), found.tag):
            if (run_id := record.get("mlflow", {}).get("run_id")) and tracked_at(tracking_uri, record):
                end_tracked(run_id)
            marked.append(record["id"])
    return marked


def tracked_at(uri: str, record: Mapping[str, Any]) -> bool:
    """Whether a record's run is in the MLflow at `uri`: a file's name means another file on another machine."""
    is_file = urlsplit(uri).scheme in ("", "file", "sqlite")
    here = not is_file or record.get("host", {}).get("machine") == machine()
    return here and record["mlflow"].get("tracking_uri") == uri


def recent_runs(store: Store) -> Iterator[tuple[str, Found, dict[str, Any]]]:
    """The newest records: where each lies, how it was read, and what it says."""
    paths = [entry.path for entry in store.objects.files(RUNS) if entry.path.endswith(".json")]
    for path in sorted(paths)[-RECENT:]:
        found = store.objects.read(path)
        with suppress(StageError):  # what holds no record is no killed run; `store.py ls` names it
            if found:
                yield path, found, decode_run(found.data, path)


def is_dead(store: Store, record: dict[str, Any], age: float) -> bool:
    """Whether the process that wrote a `running` record is gone."""
    writer = record.get("host", {})
    if writer.get("machine") == machine():
        return has_ended(writer)
    if age < QUIET_SECONDS:
        return False
    keys = ((stage, entry["key"]) for stage, entry in record["stages"].items() if entry["action"] == "run")
    return not any(leases.holder(store.objects, f"{stage}/{key}/{leases.LEASE}") for stage, key in keys)
