"""Looks into the artifact store: python pipeline/store.py ls | show KEY|URI | verify [KEY|URI] [--json] [key=value …]

`ls` lists artifacts and runs, `show` tells what one artifact is and how it came about, `verify` reads every listed
file and compares sizes and checksums. Nothing here writes.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.artifacts import Artifact, Store, open_store
from pipeline.config import load_config
from pipeline.manifests import MANIFEST
from pipeline.settings import nearest
from pipeline.terminal import Parser, open_console, text_table
from stages.context import InputError, StageError

COMMANDS = ("ls", "show", "verify")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides (`store=…`) in any place."""
    parser = Parser(prog="python pipeline/store.py", allow_abbrev=False, description=__doc__.partition("\n\n")[2])
    parser.add_argument("command", metavar="|".join(COMMANDS))
    parser.add_argument("rest", nargs="*", metavar="KEY|URI|key=value", help="which artifact; store=DIRECTORY")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_intermixed_args(arguments)
    if options.command not in COMMANDS:
        near = nearest(options.command, COMMANDS)
        raise InputError(f"there is no command '{options.command}'{near}; the commands: {', '.join(COMMANDS)}")
    options.overrides = [word for word in options.rest if re.match(r"[a-z_]+(\.\w+)*=", word)]
    options.names = [word for word in options.rest if word not in options.overrides]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 1 where `verify` found damage."""
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        config = load_config(overrides=options.overrides)
        store = open_store(config.store, config.store_endpoint)
        answer = {"ls": list_store, "show": show, "verify": verify}[options.command](store, options.names)
    except (InputError, StageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if options.json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print_answer(options.command, answer)
    return 1 if answer.get("damage") else 0


def list_store(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """All artifacts, newest last, and all runs, newest first."""
    rows = [
        {
            "stage": stage,
            "key": key,
            "created": manifest["created"],
            "seconds": manifest["seconds"],
            "files": len(manifest["files"]),
            "bytes": sum(entry["size"] for entry in manifest["files"]),
            "uri": f"{store.uri}/{stage}/{key}",
        }
        for stage, found in store.manifests().items()
        for key, manifest in found.items()
    ]
    runs = [{name: run.get(name) for name in ("id", "started", "status", "recipe")} for run in store.runs()]
    return {"store": store.uri, "artifacts": sorted(rows, key=lambda row: row["created"]), "runs": runs}


def show(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """One artifact's manifest and where its files start."""
    if len(names) != 1:
        raise InputError("show takes one KEY or URI; python pipeline/store.py ls lists them")
    artifact = find(store, names[0])
    return {"uri": artifact.uri, "base": artifact.base, **artifact.manifest}


def verify(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """Checks the named artifacts, or all."""
    listed = [(stage, key) for stage, found in store.manifests().items() for key in found]
    artifacts = [find(store, name) for name in names] or [store.artifact(stage, key) for stage, key in listed]
    damage = [line for artifact in artifacts for line in artifact.damage()]
    return {"checked": [artifact.uri for artifact in artifacts], "damage": damage}


def find(store: Store, name: str) -> Artifact:
    """The artifact of a key, of the start of one, or of the URI that a run printed."""
    path = Path(name)
    if (path / MANIFEST).is_file():
        directory = path.resolve()
        return Store(directory.parents[1]).artifact(directory.parent.name, directory.name)
    keys = [(stage, key) for stage, found in store.manifests().items() for key in found]
    matches = [(stage, key) for stage, key in keys if key.startswith(name)]
    if len(matches) != 1:
        count = f"{len(matches)} artifacts whose key starts with" if matches else "no artifact"
        raise InputError(f"there is {count} '{name}' in {store.uri}; python pipeline/store.py ls lists them")
    return store.artifact(*matches[0])


def print_answer(command: str, answer: dict[str, Any]) -> None:
    """The answer for people."""
    console = open_console(sys.stdout)
    if command == "ls":
        head = ["stage", "key", "created", "seconds", "files", "size"]
        rows = [[*(str(row[name]) for name in head[:-1]), spell_size(row["bytes"])] for row in answer["artifacts"]]
        console.print(f"{answer['store']}: {len(rows)} artifacts", soft_wrap=True)
        console.print(text_table([head, *rows]))
        head = ["id", "started", "status", "recipe"]
        console.print(text_table([head, *([str(run[name]) for name in head] for run in answer["runs"])]))
    elif command == "show":
        print_manifest(console, answer)
    else:
        for line in answer["damage"] or [f"{len(answer['checked'])} artifacts are as they were written"]:
            console.print(line, soft_wrap=True)


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
