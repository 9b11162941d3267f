"""Runs a grid of variants: python pipeline/ablate.py RECIPE GRID [key=value …] [--plan] [--output FILE] [--json]

Every cell, a variant with a seed, goes through the normal pipeline, so what cells have in common is computed once and
a second call computes only what is missing. A cell that fails is told in its row and the others go on. All run in this
process and in one Ray cluster. The tables go to the terminal, to MLflow (one parent run, a child for each cell) and
with --output into a section of a Markdown file.

Exit codes: 0 done, 2 the input is wrong, 1 a cell failed, 130 interrupted; the same command goes on.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.ablation.cells import Ablation
from pipeline.ablation.grid import find_cells, read_grid
from pipeline.ablation.machine import describe_machine
from pipeline.ablation.tables import collect, quality_rows, reference_quality
from pipeline.terminal import Parser, json_command, open_console, text_table
from pipeline.tracking.client import resolve_uri
from stages.contract.context import InputError, StageError

HIDDEN = ("store", "tracking_uri")
"""Overrides that say where and not what: they don't belong in a document."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; options and overrides in any order."""
    parser = Parser("ablate", __doc__)
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe of pipeline/recipes, or a YAML file")
    add("grid", metavar="GRID", help="a grid of pipeline/grids, or a YAML file")
    add("overrides", nargs="*", metavar="key=value", help="dotted overrides of every cell")
    add("--plan", action="store_true", help="show which cells would run, and run nothing")
    add("--output", type=Path, metavar="FILE", help="Markdown file; this grid's section of it is written anew")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    return parser.parse_mixed(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return json_command(lambda: parse_arguments(given), run_command, "the same command goes on")


def run_command(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Plans all cells, runs them, writes the tables; raises StageError where cells failed."""
    path, grid = read_grid(options.grid)
    cells = find_cells(path, grid, options.recipe, options.overrides)
    check_output(options.output)
    console = open_console(sys.stderr if options.json else sys.stdout)
    ablation = Ablation(path.stem, grid, cells, options.recipe, lambda line: console.print(line, soft_wrap=True))
    ablation.say(ablation.outlook())
    if options.plan:
        console.print(text_table(ablation.plan_rows(len(grid.base) + len(options.overrides))))
        answer |= {"cells": [list(cell.overrides) for cell in cells]}
        return
    command = spell_command(options)
    interrupted = True  # by Ctrl-C or by a change of the code
    try:
        ablation.run(resolve_uri(cells[0].config.tracking_uri), command)
        interrupted = False
    finally:
        if any(ablation.outcomes):
            answer |= publish(ablation, options, command, console, interrupted)
        elif ablation.tracker:
            ablation.tracker.end("KILLED")
    failed = [cell.label for cell, outcome in zip(cells, ablation.outcomes, strict=True) if outcome.error]
    if failed:
        raise StageError(f"{len(failed)} of {len(cells)} cells failed, first {failed[0]}")


def check_output(output: Path | None) -> None:
    """Refuses a file that could not be written hours later."""
    if output and not output.resolve().parent.is_dir():
        raise InputError(f"--output {output}: there is no directory {output.parent}; make it first")
    if output and (output.is_dir() or (output.exists() and not os.access(output, os.W_OK))):
        raise InputError(f"--output {output} can't be written; give a file")


def publish(
    ablation: Ablation, options: argparse.Namespace, command: str, console: Any, interrupted: bool
) -> dict[str, Any]:
    """Shows, tracks and writes the tables of what is known so far; the JSON answer."""
    tables = collect(ablation.cells, ablation.outcomes)
    reference = reference_quality(tables, ablation.grid.reference)
    for name, rows in tables.items():
        console.print(f"{name}: hit@5, mean ± standard deviation over seeds")
        console.print(text_table(quality_rows(rows, reference, ablation.curve())))
    recipe = Path(options.recipe).stem
    today = datetime.now(UTC).strftime("%-d %B %Y")
    head = f"## Grid `{ablation.name}` on recipe `{recipe}`\n\n```\n{command}\n```\n\n{today}, {describe_machine()}."
    section, answer = ablation.finish(head, interrupted)
    if options.output:
        write_section(options.output, f"{recipe} {ablation.name}", section)
        ablation.say(f"tables: {options.output}")
    return answer


def spell_command(options: argparse.Namespace) -> str:
    """The command for a document: without where things lie on this machine."""
    shown = [one.partition("=") for one in options.overrides]
    overrides = [f"{key}={shown_path(value)}" for key, _, value in shown if key not in HIDDEN]
    words = ["python", "pipeline/ablate.py", shown_path(options.recipe), shown_path(options.grid), *overrides]
    return " ".join(word if re.fullmatch(r"[\w./=…+-]+", word) else shlex.quote(word) for word in words)


def shown_path(value: str) -> str:
    """`…/grocery` for an absolute path, else the value."""
    return f"…/{Path(value).name}" if Path(value).is_absolute() else value


def write_section(path: Path, name: str, section: str) -> None:
    """Puts the section between its marks in the file, or at the end; all else in the file stays as it is."""
    start, end = f"<!-- ablation {name} -->", f"<!-- end of ablation {name} -->"
    block = f"{start}\n{section}\n{end}\n"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Ablations\n"
    marked = re.compile(f"{re.escape(start)}.*?{re.escape(end)}\n?", re.DOTALL)
    text = marked.sub(lambda _: block, text) if marked.search(text) else f"{text.rstrip()}\n\n{block}"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
