"""Runs a grid of variants: python pipeline/ablate.py RECIPE GRID [key=value …] [--plan] [--output FILE] [--json]

Every cell, a variant with a seed, goes through the normal pipeline, so what cells have in common is computed once and
a second call computes only what is missing. A cell that fails is named in its row and the others go on. All run in
this process and in one Ray cluster. The tables go to the terminal, to MLflow (one parent run, a child for each cell)
and with --output into a section of a Markdown file.

Exit codes: 0 done, 2 the input is wrong, 1 a cell failed, 130 interrupted; the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.collector import spare_collector

    spare_collector()

from pipeline.ablation.grid_run import run_grid
from pipeline.terminal import Parser, json_command


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; options and overrides in any order."""
    parser = Parser("ablate", __doc__)
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe of pipeline/recipes, or a YAML file")
    add("grid", metavar="GRID", help="a grid of pipeline/grids, or a YAML file")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="dotted overrides of every cell; what a variant sets itself stays",
    )
    add("--plan", action="store_true", help="show which cells would run, and run nothing")
    add("--output", type=Path, metavar="FILE", help="Markdown file; this grid's section of it is rewritten")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    return parser.parse_mixed(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return json_command(lambda: parse_arguments(given), run_grid, lambda _: "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
