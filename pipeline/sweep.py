"""What may be deleted from a store: artifacts that nobody needs, and what killed attempts left.

Marked, and kept, are the artifacts that the last runs name, those that are pinned, and all that these were made from.
A key that somebody holds the lease of is left alone, and so is one whose manifest can't be read. To delete, the sweep
takes the key's lease itself, looks at the runs again, deletes the manifest first and the files after it: no reader
ever finds a manifest without its files. Files of no manifest go only when they are older than the grace, by the clock
of the store: an attempt whose outcome is not known yet may still be committed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import leases
from pipeline.artifacts import Store
from pipeline.manifests import MANIFEST, PINS, read_manifest, stage_names
from stages.context import StageError

KEEP_RUNS = 10
GRACE_HOURS = 24.0

Key = tuple[str, str]


@dataclass
class Sweep:
    """What a sweep deletes, or would: whole artifacts, and files of dead attempts below keys that stay."""

    artifacts: dict[Key, int] = field(default_factory=dict)
    leftovers: dict[Key, list[str]] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)
    bytes: int = 0
    unfinished: int = 0


def find_garbage(store: Store, keep: int, grace: float) -> Sweep:
    """What is to be deleted: all but what the last `keep` runs and the pins need; `grace` in seconds."""
    found = Sweep()
    marked = marked_keys(store, keep)
    for stage, key in all_keys(store):
        holder = leases.holder(store.objects, f"{stage}/{key}/{leases.LEASE}", store.lease_seconds)
        if holder:
            found.skipped[stage, key] = f"{holder['holder']} computes it since {holder['since']}"
            continue
        try:
            manifest = read_manifest(store.objects, stage, key)
        except StageError as error:
            found.skipped[stage, key] = str(error)
            continue
        entries = store.objects.files(f"{stage}/{key}")
        if manifest and (stage, key) not in marked:
            found.artifacts[stage, key] = sum(entry.size for entry in entries)
            found.bytes += found.artifacts[stage, key]
            continue
        own = (f"{stage}/{key}/{MANIFEST}", f"{stage}/{key}/{leases.LEASE}")
        listed = f"{stage}/{key}/{manifest['attempt']}/" if manifest else " "
        dead = [one for one in entries if one.age > grace and one.path not in own and not one.path.startswith(listed)]
        if dead:
            found.leftovers[stage, key] = [entry.path for entry in dead]
            found.bytes += sum(entry.size for entry in dead)
    return found


def delete(store: Store, garbage: Sweep, keep: int, grace: float) -> None:
    """Deletes what was found, as far as it still is nobody's; what became somebody's goes to `skipped`."""
    for key in [*garbage.artifacts, *garbage.leftovers]:
        stage, name = key
        lease = leases.take(store.objects, f"{stage}/{name}/{leases.LEASE}", store.lease_seconds)
        if lease is None or (key in garbage.artifacts and key in marked_keys(store, keep)):
            garbage.skipped[key] = "came into use"
            garbage.artifacts.pop(key, None)
            garbage.leftovers.pop(key, None)
            if lease:
                lease.release()
            continue
        if key in garbage.artifacts:
            store.objects.remove([f"{stage}/{name}/{MANIFEST}"])
            store.objects.remove_tree(f"{stage}/{name}")
        else:
            store.objects.remove(garbage.leftovers[key])
            lease.release()
            if [entry.path for entry in store.objects.files(f"{stage}/{name}")] == [lease.path]:
                store.objects.remove_tree(f"{stage}/{name}")
    garbage.unfinished = store.objects.sweep(grace)


def marked_keys(store: Store, keep: int) -> set[Key]:
    """What the newest `keep` runs, every run that is under way, and the pins name, and what these were made from."""
    runs = store.runs()
    needed = runs[:keep] + [run for run in runs[keep:] if run["status"] == "running"]
    waiting = {(stage, facts["key"]) for run in needed for stage, facts in run["stages"].items()} | set(pins(store))
    manifests, marked = store.manifests(), set()
    while waiting:
        stage, key = waiting.pop()
        marked.add((stage, key))
        inputs: Mapping[str, Any] = {}
        if key in manifests[stage]:
            try:
                inputs = manifests[stage][key]["inputs"]
            except StageError:  # what can't be read is never deleted itself
                continue
        waiting |= {(name, entry["key"]) for name, entry in inputs.items()} - marked
    return marked


def all_keys(store: Store) -> list[Key]:
    """Every stage and key that has a directory, committed or not."""
    return [(stage, key) for stage in stage_names(store.objects) for key in store.objects.names(stage)]


def pins(store: Store) -> list[Key]:
    """What is pinned."""
    found = [store.objects.read(entry.path) for entry in store.objects.files(PINS)]
    return [(pin["stage"], pin["key"]) for pin in (json.loads(one.data) for one in found if one)]


def pin(store: Store, stage: str, key: str) -> None:
    """Keeps an artifact, and what it was made from, whatever the sweep deletes."""
    store.objects.prepare()
    store.objects.put(f"{PINS}/{stage}-{key}.json", json.dumps({"stage": stage, "key": key}).encode())


def unpin(store: Store, stage: str, key: str) -> None:
    """Lets go of a pinned artifact."""
    store.objects.remove([f"{PINS}/{stage}-{key}.json"])
