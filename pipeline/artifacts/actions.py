"""What `store.py` answers, as plain values: lists, one artifact, damage, garbage, pins."""

import argparse
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import garbage, leases
from pipeline.artifacts.copies import expire_copies
from pipeline.artifacts.local import LocalObjects
from pipeline.artifacts.manifests import MANIFEST
from pipeline.artifacts.store import Artifact, Store, open_store
from stages.contract.context import InputError, StageError


def list_store(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """All keys, newest last, and all runs, newest first."""
    manifests, pins = store.manifests(), list(garbage.read_pins(store))
    pinned, registered = (
        {(pin["stage"], pin["key"]) for pin in pins if ("attempt" in pin) == named} for named in (0, 1)
    )
    rows = []
    for stage, key in garbage.all_keys(store):
        manifest = manifests[stage].peek(key)
        state = "whole" if manifest else "damaged" if store.has(stage, key) else "unfinished"
        if leases.holder(store.objects, f"{stage}/{key}/{leases.LEASE}", store.lease_seconds):
            state = "running"
        marks = {"pinned": (stage, key) in pinned, "registered": (stage, key) in registered}
        rows.append(row(store, stage, key, state, manifest or {}) | marks)
    records = store.runs(lambda error: print(f"warning: {error}", file=sys.stderr))
    runs = [{name: run.get(name) for name in ("id", "started", "status", "recipe")} for run in records]
    return {"store": store.uri, "artifacts": sorted(rows, key=lambda row: row["created"]), "runs": runs}


def row(store: Store, stage: str, key: str, state: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """One line of `ls`."""
    created, files = manifest.get("created", ""), manifest.get("files", [])
    age = datetime.now(UTC) - datetime.fromisoformat(created) if created else None
    return {
        "stage": stage,
        "key": key,
        "state": state,
        "created": created,
        "age": age.total_seconds() if age else None,
        "seconds": manifest.get("seconds"),
        "files": len(files),
        "bytes": sum(entry["size"] for entry in files),
        "run": manifest.get("run"),
        "uri": f"{store.uri}/{stage}/{key}",
    }


def show(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """One artifact's manifest and where its files start."""
    artifact = one_artifact(store, options)
    return {"uri": artifact.uri, "base": artifact.base, **artifact.manifest}


def verify(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Checks the named artifacts, or all."""
    checked, damage = [], []
    named = [partial(find, store, name) for name in options.names]
    committed = (key for key in garbage.all_keys(store) if store.has(*key))
    for open_artifact in named or [partial(store.artifact, *key) for key in committed]:
        try:
            artifact = open_artifact()
            checked.append(artifact.uri)
            damage += artifact.damage()
        except StageError as error:
            damage.append(str(error))
    return {"checked": checked, "damage": damage}


def collect(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """What is not needed any more; deleted with --apply."""
    found = garbage.find_garbage(store, options.keep, options.grace * 3600)
    if options.apply:
        garbage.delete(store, found)
    copies = expire_copies() if options.apply and not isinstance(store.objects, LocalObjects) else 0
    return {
        "applied": options.apply,
        "artifacts": [f"{stage}/{key}" for stage, key in found.artifacts],
        "leftovers": [entry.path for entries in found.leftovers.values() for entry in entries],
        "skipped": {f"{stage}/{key}": why for (stage, key), why in found.skipped.items()},
        "bytes": found.bytes,
        "copies": copies,
    }


def pin(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Pins one artifact in the store that it lies in."""
    artifact = one_artifact(store, options)
    garbage.pin(Store(artifact.objects), artifact.stage, artifact.key)
    return {"pinned": artifact.uri}


def unpin(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Unpins one artifact, and with --registered lets go of what MLflow's versions refer to."""
    artifact = one_artifact(store, options)
    own, key = Store(artifact.objects), (artifact.stage, artifact.key)
    garbage.unpin(own, *key)
    if options.registered:
        garbage.drop_registered(own, *key)
    names = sorted(
        {pin["name"] for pin in garbage.read_pins(own) if "name" in pin and (pin["stage"], pin["key"]) == key}
    )
    stays = {"still registered as": f"{', '.join(names)}; --registered lets go of that too"} if names else {}
    return {"unpinned": artifact.uri, **stays}


def one_artifact(store: Store, options: argparse.Namespace) -> Artifact:
    """The one artifact that the command line names."""
    if len(options.names) != 1:
        raise InputError(f"{options.command} takes one KEY or URI; python pipeline/store.py ls lists them")
    return find(store, options.names[0])


def find(store: Store, name: str) -> Artifact:
    """The artifact of a key, of the start of one, or of the URI that a run printed."""
    if "://" in name or (Path(name) / MANIFEST).is_file():
        path = name if "://" in name else str(Path(name).resolve())
        above, stage, key = ["", "", *path.rstrip("/").rsplit("/", 2)][-3:]
        if not above or above.endswith(":/") or not stage:
            raise InputError(f"{name} is no artifact: STORE/STAGE/KEY; python pipeline/store.py ls lists them")
        return open_store(above, getattr(store.objects, "endpoint", "")).artifact(stage, key)
    matches = [
        (stage, key) for stage, key in garbage.all_keys(store) if key.startswith(name) and store.has(stage, key)
    ]
    if len(matches) != 1:
        count = f"{len(matches)} artifacts whose key starts with" if matches else "no artifact"
        raise InputError(f"there is {count} '{name}' in {store.uri}; python pipeline/store.py ls lists them")
    return store.artifact(*matches[0])
