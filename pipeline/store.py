"""Looks after the artifact store: python pipeline/store.py ls|show|verify|pin|unpin|gc [--json] [key=value …]

`ls` lists artifacts and runs, `show KEY|URI` says what one artifact is and how it came about, `verify [KEY|URI]`
reads every listed file and compares sizes and checksums. `gc` lists what neither the last runs nor a pin needs nor a
student registered in MLflow is, and deletes it with --apply; `pin KEY|URI` keeps an artifact and all it was made from,
`unpin` lets it go. With a bucket `gc --apply` also deletes those of this machine's copies (PUMA_CACHE) that no run has
asked for in a month.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.collector import spare_collector

    spare_collector()

from pipeline.artifacts import actions, display
from pipeline.artifacts.garbage import GRACE_HOURS, KEEP_RUNS
from pipeline.artifacts.store import open_store
from pipeline.config.load import load_config
from pipeline.terminal import Parser, json_command, open_console
from pipeline.wording import nearest
from stages.contract.context import InputError

COMMANDS = {
    "ls": (actions.list_store, display.print_list),
    "show": (actions.show, display.print_manifest),
    "verify": (actions.verify, display.print_damage),
    "gc": (actions.collect, display.print_garbage),
    "pin": (actions.pin, display.print_pins),
    "unpin": (actions.unpin, display.print_pins),
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides (`store=…`) in any place."""
    parser = Parser("store", __doc__)
    add = parser.add_argument
    add("command", metavar="|".join(COMMANDS))
    add("rest", nargs="*", metavar="KEY|URI|key=value", help="which artifact; store=DIRECTORY or s3://bucket/prefix")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--apply", action="store_true", help="gc: delete, instead of only listing")
    add("--keep", type=int, default=KEEP_RUNS, metavar="N", help="gc: runs whose artifacts stay (%(default)s)")
    add("--grace", type=float, default=GRACE_HOURS, metavar="HOURS", help="gc: age of leftovers (%(default)s)")
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
    given, damaged = sys.argv[1:] if arguments is None else arguments, False

    def run(options: argparse.Namespace, answer: dict[str, Any]) -> None:
        nonlocal damaged
        config = load_config(overrides=options.overrides)
        act, show = COMMANDS[options.command]
        answer |= act(open_store(config.store, config.store_endpoint), options)
        damaged = bool(answer.get("damage"))
        if not options.json:
            show(open_console(sys.stdout), answer)

    return json_command(lambda: parse_arguments(given), run) or int(damaged)


if __name__ == "__main__":
    sys.exit(main())
