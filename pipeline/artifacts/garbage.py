"""What may be deleted from a store: artifacts that nobody needs, and what killed attempts left.

Marked, and kept, are the artifacts that the last runs name, those that are pinned, and all that these were made from;
of a student that was registered the files of just that attempt, also where a later one took its place. Every
registered version counts, with an alias or without: aliases move, they lie in MLflow, which may be out of reach, and a
version whose weights are gone is a broken promise. What a student was made from is not needed to load it.

A key that somebody holds the lease of is left alone, so is one whose manifest can't be read, and so is what a killed
run of a marked key left to be resumed. Where a marked manifest can't be read nothing at all is deleted, for nobody
knows what that artifact was made from. To delete, the collector takes the key's lease itself, looks at the runs again,
deletes the manifest first, the files after it and the lease last: no reader ever finds a manifest without its files.
Files of no manifest go only when they are older than the grace, by the clock of the store: an attempt whose outcome is
not known yet may still be committed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.artifacts import leases
from pipeline.artifacts.manifests import MANIFEST, PINS, RUNS, read_manifest, stage_names
from pipeline.artifacts.objects import Entry
from pipeline.artifacts.store import Store
from stages.contract.context import StageError

KEEP_RUNS = 10
GRACE_HOURS = 24.0

Key = tuple[str, str]


@dataclass
class Marks:
    """What may not be deleted: `keys`, and below any key the `attempts` that registered students are."""

    store: Store
    keep: int
    keys: set[Key] = field(default_factory=set)
    attempts: set[tuple[str, str, str]] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    asked: bool = False

    def refresh(self) -> None:
        """Marks what the newest `keep` runs, every run under way and the pins name, and what these were made from.

        Asked again it reads only what is new, and the record of every run under way: that one names the keys of its
        stages from the first time it is written, and what they share before it is used.
        Raises StageError where a record, a pin or a marked manifest can't be read.
        """
        runs = sorted(self.store.read_runs(self._fresh(RUNS)), key=lambda run: run["started"], reverse=True)
        self.seen -= {f"{RUNS}/{run['id']}.json" for run in runs if run["status"] == "running"}
        if not self.asked:
            runs = runs[: self.keep] + [run for run in runs[self.keep :] if run["status"] == "running"]
        self.asked = True
        waiting = {(stage, facts["key"]) for run in runs for stage, facts in run["stages"].items()}
        waiting |= {(name, key) for run in runs for name, key in run.get("shared", ())}
        for pin in read_pins(self.store, self._fresh(PINS)):
            if "attempt" in pin:
                self.attempts.add((pin["stage"], pin["key"], pin["attempt"]))
            else:
                waiting.add((pin["stage"], pin["key"]))
        self._follow(waiting - self.keys)
        self.keys |= {(stage, key) for stage, key, _ in self.attempts}

    def _follow(self, waiting: set[Key]) -> None:
        while waiting:
            stage, key = waiting.pop()
            try:
                manifest = read_manifest(self.store.objects, stage, key)
            except StageError as error:
                raise StageError(f"nothing was deleted, for what runs or pins need can't be read: {error}") from error
            self.keys.add((stage, key))
            inputs = manifest["inputs"] if manifest else {}
            shared = manifest.get("shared", ()) if manifest else ()
            waiting |= {(name, entry["key"]) for name, entry in inputs.items()} - self.keys
            waiting |= {(entry["stage"], entry["key"]) for entry in shared} - self.keys

    def _fresh(self, directory: str) -> list[str]:
        found = [entry.path for entry in self.store.objects.files(directory) if entry.path.endswith(".json")]
        fresh = [path for path in found if path not in self.seen]
        self.seen |= set(found)
        return fresh


@dataclass
class Garbage:
    """What may be deleted: whole artifacts, and files of dead attempts below keys that stay."""

    marks: Marks
    grace: float
    artifacts: dict[Key, int] = field(default_factory=dict)
    leftovers: dict[Key, list[Entry]] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The size of all that goes."""
        dead = sum(entry.size for entries in self.leftovers.values() for entry in entries)
        return sum(self.artifacts.values()) + dead


def find_garbage(store: Store, keep: int, grace: float) -> Garbage:
    """What is to be deleted: all but what the last `keep` runs and the pins need; `grace` in seconds."""
    found = Garbage(Marks(store, keep), grace)
    found.marks.refresh()
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
        if manifest and (stage, key) not in found.marks.keys:
            found.artifacts[stage, key] = sum(entry.size for entry in store.objects.files(f"{stage}/{key}"))
        elif dead := dead_files(found, stage, key, manifest):
            found.leftovers[stage, key] = dead
    return found


def dead_files(found: Garbage, stage: str, key: str, manifest: dict[str, Any] | None) -> list[Entry]:
    """Files older than the grace that no manifest lists, no registered student needs and no later run resumes from."""
    if manifest is None and (stage, key) in found.marks.keys:
        return []
    directory = f"{stage}/{key}"
    alive = [attempt for *owner, attempt in found.marks.attempts if owner == [stage, key]]
    alive += [manifest["attempt"]] if manifest else []
    kept = tuple(f"{directory}/{attempt}/" for attempt in alive)
    own = (f"{directory}/{MANIFEST}", f"{directory}/{leases.LEASE}")
    entries = found.marks.store.objects.files(directory)
    return [
        entry
        for entry in entries
        if entry.age > found.grace and entry.path not in own and not entry.path.startswith(kept)
    ]


def delete(store: Store, garbage: Garbage) -> None:
    """Deletes what was found, as far as it still is nobody's; what became somebody's goes to `skipped`."""
    for key in [*garbage.artifacts, *garbage.leftovers]:
        lease = leases.try_acquire(store.objects, "/".join((*key, leases.LEASE)), store.lease_seconds)
        deleted = False
        if lease:
            with leases.keep_alive(lease):
                garbage.marks.refresh()
                deleted = delete_artifact(store, garbage, key) if key in garbage.artifacts else True
                if deleted and key in garbage.leftovers:
                    delete_leftovers(store, garbage, key)
                drop_empty(store, key, lease)
        if not deleted:
            garbage.skipped[key] = "came into use"
            garbage.artifacts.pop(key, None)
            garbage.leftovers.pop(key, None)
    store.objects.drop_unfinished(garbage.grace, in_use(store))


def delete_artifact(store: Store, garbage: Garbage, key: Key) -> bool:
    """Deletes an artifact but for the lease, the manifest first; False where it came into use meanwhile."""
    if key in garbage.marks.keys:
        return False
    directory = "/".join(key)
    store.objects.remove([f"{directory}/{MANIFEST}"])
    files = [entry.path for entry in store.objects.files(directory)]
    store.objects.remove([path for path in files if path != f"{directory}/{leases.LEASE}"])
    return True


def delete_leftovers(store: Store, garbage: Garbage, key: Key) -> None:
    """Deletes the files of dead attempts, as far as they still are dead; others are no leftovers any more."""
    dead = {entry.path for entry in dead_files(garbage, *key, read_manifest(store.objects, *key))}
    garbage.leftovers[key] = [entry for entry in garbage.leftovers[key] if entry.path in dead]
    store.objects.remove([entry.path for entry in garbage.leftovers[key]])


def drop_empty(store: Store, key: Key, lease: leases.Lease) -> None:
    """Deletes a directory that holds nothing but our lease, and the lease too: freed before, it might be another's."""
    directory = "/".join(key)
    if [entry.path for entry in store.objects.files(directory)] == [lease.path] and not lease.lost:
        store.objects.remove_tree(directory)


def in_use(store: Store) -> Callable[[str], bool]:
    """Tells of a path whether it lies below a key that somebody holds the lease of; each key is looked at once."""
    held = cache(lambda key: leases.holder(store.objects, f"{key}/{leases.LEASE}", store.lease_seconds) is not None)
    return lambda path: held("/".join(path.split("/")[:2]))


def all_keys(store: Store) -> list[Key]:
    """Every stage and key that has a directory, committed or not."""
    return [(stage, key) for stage in stage_names(store.objects) for key in store.objects.names(stage)]


# ---------------------------------------------------------------------------------------- pins and registered students


def read_pins(store: Store, paths: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
    """`stage` and `key` of what is pinned, with the `attempt` and the `name` where it is a registered student."""
    if paths is None:
        paths = [entry.path for entry in store.objects.files(PINS)]
    for path in paths:
        if found := store.objects.read(path):
            try:
                pin = json.loads(found.data)
                yield {**pin, "stage": pin["stage"], "key": pin["key"]}
            except (ValueError, KeyError, TypeError):
                raise StageError(f"{store.uri}/{path} holds no pin; delete it and pin the artifact again") from None


def pin(store: Store, stage: str, key: str) -> None:
    """Keeps an artifact, and what it was made from, whatever `gc` deletes."""
    write_pin(store, f"{stage}-{key}", {"stage": stage, "key": key})


def unpin(store: Store, stage: str, key: str) -> None:
    """Lets go of a pinned artifact."""
    store.objects.remove([f"{PINS}/{stage}-{key}.json"])


def keep_registered(store: Store, stage: str, key: str, attempt: str, name: str) -> None:
    """Keeps the files of an attempt that the model `name` is about to refer to, unless they are kept already."""
    place = f"{stage}-{key}.{attempt}"
    if store.objects.size(f"{PINS}/{place}.json") is None:
        write_pin(store, place, {"stage": stage, "key": key, "attempt": attempt, "name": name})


def registered_name(store: Store, stage: str, key: str, attempt: str) -> str:
    """The name that an attempt was first registered by; empty where it never was."""
    return next((pin.get("name", "") for pin in read_pins(store, [f"{PINS}/{stage}-{key}.{attempt}.json"])), "")


def drop_registered(store: Store, stage: str, key: str) -> None:
    """Lets go of all registered attempts at a key."""
    found = [entry.path for entry in store.objects.files(PINS)]
    store.objects.remove([path for path in found if path.startswith(f"{PINS}/{stage}-{key}.") and path.count(".") > 1])


def write_pin(store: Store, place: str, facts: dict[str, str]) -> None:
    """Writes one file below `pins/`."""
    store.objects.prepare()
    store.objects.put(f"{PINS}/{place}.json", json.dumps(facts).encode())
