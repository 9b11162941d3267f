"""Runs the pipeline: python pipeline/run.py [--recipe NAME|FILE] [key=value …] [--plan] [--only S] … [--json]

Plans first, prints why each stage runs, then brings the stages up to date. The same command again finds everything
cached; after a failure it resumes. Exit codes: 0 done, 2 the input is wrong, 1 a stage failed, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.collector import spare_collector

    spare_collector()

from pipeline.execution.launch import launch
from pipeline.terminal import Parser, json_command


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; options and overrides in any order."""
    parser = Parser("run", __doc__)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="dotted overrides, for example student.layers=3")
    add("--recipe", default="demo", metavar="NAME|FILE", help="a recipe of pipeline/recipes, or a YAML file (demo)")
    add("--plan", action="store_true", help="show what would run and why, and run nothing")
    add("--only", default="", metavar="S", help="run this stage alone; what it reads must be there")
    add("--from", default="", metavar="S", dest="start", help="run this stage and all that follow from it again")
    add("--until", default="", metavar="S", help="stop after this stage")
    add("--force", default=[], metavar="S", action="append", help="run this stage even if it is cached")
    add("--ignore-code", action="store_true", help="take artifacts of other code, where nothing else differs")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    options = parser.parse_mixed(arguments)
    options.given = list(arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return json_command(lambda: parse_arguments(given), launch, next_time)


def next_time(options: argparse.Namespace) -> str:
    """What the same command does after one that was not done."""
    if options.force or options.start:
        return "the same command starts anew what it forces; without --force and --from, what is done stays"
    return "the same command resumes"


if __name__ == "__main__":
    sys.exit(main())
