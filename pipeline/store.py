"""Looks after the artifact store: python pipeline/store.py ls|show|verify|pin|unpin|gc [--json] [key=value …]

`ls` lists artifacts and runs, `show KEY|URI` tells what one artifact is and how it came about, `verify [KEY|URI]`
reads every listed file and compares sizes and checksums. `gc` lists what neither the last runs nor a pin needs nor a
student registered in MLflow is, and deletes it with --apply; `pin KEY|URI` keeps an artifact and all it was made from,
`unpin` lets it go. With a bucket `gc --apply` also deletes those of this machine's copies (PUMA_CACHE) that no run has
asked for in a month.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.artifacts import garbage, leases
from pipeline.artifacts.copies import expire_copies
from pipeline.artifacts.local import LocalObjects
from pipeline.artifacts.manifests import MANIFEST
from pipeline.artifacts.store import Artifact, Store, open_store
from pipeline.config.load import load_config
from pipeline.terminal import Parser, json_command, open_console, text_table
from pipeline.wording import nearest
from stages.contract.context import InputError, StageError


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides (`store=…`) in any place."""
    parser = Parser("store", __doc__)
    add = parser.add_argument
    add("command", metavar="|".join(COMMANDS))
    add("rest", nargs="*", metavar="KEY|URI|key=value", help="which artifact; store=DIRECTORY or s3://bucket/prefix")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--apply", action="store_true", help="gc: delete, instead of only listing")
    add("--keep", type=int, default=garbage.KEEP_RUNS, metavar="N", help="gc: runs whose artifacts stay (%(default)s)")
    add("--grace", type=float, default=garbage.GRACE_HOURS, metavar="HOURS", help="gc: age of leftovers (%(default)s)")
    add("--registered", action="store_true", help="unpin: let go also of weights that registered versions refer to")
    options = parser.parse_mixed(arguments)
    if options.command not in COMMANDS:
        near = nearest(options.command, COMMANDS)
        raise InputError(f"there is no command '{options.command}'{near}; the commands: {', '.join(COMMANDS)}")
    if options.keep < 0 or options.grace < 0:
        raise InputError("--keep and --grace can't be below 0; give --keep 0 to keep only what is pinned")
    options.overrides = [word for word in options.rest if re.match(r"[a-z_]+(\.\w+)*=", word)]
    options.names = [word for word in options.rest if word not in options.overrides]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 1 where `verify` found damage."""
    given = sys.argv[1:] if arguments is None else arguments
    answer: dict[str, Any] = {}

    def action(options: argparse.Namespace, told: dict[str, Any]) -> None:
        config = load_config(overrides=options.overrides)
        answer.update(COMMANDS[options.command](open_store(config.store, config.store_endpoint), options))
        told |= answer
        if not options.json:
            print_answer(options.command, answer)

    return json_command(lambda: parse_arguments(given), action) or int(bool(answer.get("damage")))


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
    if options.names:
        artifacts: list[Callable[[], Artifact]] = [lambda name=name: find(store, name) for name in options.names]
    else:
        keys = [key for key in garbage.all_keys(store) if store.has(*key)]
        artifacts = [lambda key=key: store.artifact(*key) for key in keys]
    for opened in artifacts:
        try:
            artifact = opened()
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
        "leftovers": [path for paths in found.leftovers.values() for path in paths],
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


COMMANDS = {"ls": list_store, "show": show, "verify": verify, "gc": collect, "pin": pin, "unpin": unpin}


def one_artifact(store: Store, options: argparse.Namespace) -> Artifact:
    """The one artifact that the command line names."""
    if len(options.names) != 1:
        raise InputError(f"{options.command} takes one KEY or URI; python pipeline/store.py ls lists them")
    return find(store, options.names[0])


def find(store: Store, name: str) -> Artifact:
    """The artifact of a key, of the start of one, or of the URI that a run printed."""
    if "://" in name or (Path(name) / MANIFEST).is_file():
        path = name if "://" in name else str(Path(name).resolve())
        above, stage, key = path.rstrip("/").rsplit("/", 2)
        return open_store(above, getattr(store.objects, "endpoint", "")).artifact(stage, key)
    matches = [
        (stage, key) for stage, key in garbage.all_keys(store) if key.startswith(name) and store.has(stage, key)
    ]
    if len(matches) != 1:
        count = f"{len(matches)} artifacts whose key starts with" if matches else "no artifact"
        raise InputError(f"there is {count} '{name}' in {store.uri}; python pipeline/store.py ls lists them")
    return store.artifact(*matches[0])


def print_answer(command: str, answer: dict[str, Any]) -> None:
    """The answer for people."""
    console = open_console(sys.stdout)
    if command == "ls":
        print_list(console, answer)
    elif command == "show":
        print_manifest(console, answer)
    elif command == "gc":
        print_garbage(console, answer)
    elif command == "verify":
        for line in answer["damage"] or [f"{len(answer['checked'])} artifacts are as they were written"]:
            console.print(line, soft_wrap=True)
    else:
        console.print(" ".join(f"{verb} {uri}" for verb, uri in answer.items()), soft_wrap=True)


def print_list(console: Any, answer: dict[str, Any]) -> None:
    """Artifacts and runs as tables."""
    head = ["stage", "key", "age", "size", "files", "state", "run", "pinned"]
    rows = []
    for row in answer["artifacts"]:
        told = {**row, "age": spell_age(row["age"]), "size": spell_size(row["bytes"]), "run": row["run"] or ""}
        marks = [name for name in ("pinned", "registered") if row[name]]
        rows.append([str(told[name]) for name in head[:-1]] + [", ".join(marks)])
    console.print(f"{answer['store']}: {len(rows)} artifacts", soft_wrap=True)
    console.print(text_table([head, *rows]))
    head = ["id", "started", "status", "recipe"]
    console.print(text_table([head, *([str(run[name]) for name in head] for run in answer["runs"])]))


def print_garbage(console: Any, answer: dict[str, Any]) -> None:
    """What is deleted, or would be, and what was left alone."""
    verb = "deleted" if answer["applied"] else "would delete"
    lines = [f"{verb} {name}" for name in answer["artifacts"]]
    lines += [f"{verb} {len(answer['leftovers'])} files of killed or replaced attempts"] if answer["leftovers"] else []
    lines += [f"left {name} alone: {why}" for name, why in answer["skipped"].items()]
    lines += [f"{spell_size(answer['bytes'])} in all{'' if answer['applied'] else '; --apply deletes them'}"]
    lines += [f"{spell_size(answer['copies'])} of copies on this machine"] if answer["copies"] else []
    for line in lines:
        console.print(line, soft_wrap=True)


def spell_age(seconds: float | None) -> str:
    """How long ago, in the largest unit that fits."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_manifest(console: Any, manifest: dict[str, Any]) -> None:
    """What the artifact is, what its key was made of, and its files."""
    facts = {name: manifest[name] for name in ("uri", "stage", "key", "attempt", "created", "seconds", "run", "git")}
    facts |= {f"input {name}": entry["key"] for name, entry in manifest["inputs"].items()}
    facts |= {f"param {name}": value for name, value in manifest["parts"]["params"].items()}
    facts |= {name: value for name, value in manifest["metrics"].items() if not isinstance(value, dict)}
    for name, value in facts.items():
        console.print(f"{name + ':':<12} {value}", soft_wrap=True)
    rows = [[entry["path"], spell_size(entry["size"]), entry["sha256"][:12]] for entry in manifest["files"]]
    console.print(text_table([["file", "size", "sha256"], *rows]))


def spell_size(size: float) -> str:
    """Bytes with the unit that keeps the number short."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


if __name__ == "__main__":
    sys.exit(main())
