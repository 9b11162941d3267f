"""The section of a Markdown file that a grid's tables are written to."""

import argparse
import os
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

from pipeline.ablation.machine import describe_machine
from stages.contract.context import InputError

HIDDEN = ("store", "tracking_uri")
"""Overrides that say where and not what: they don't belong in a document."""


def check_output(output: Path | None) -> None:
    """Refuses a file that could not be written hours later."""
    if output and not output.resolve().parent.is_dir():
        raise InputError(f"--output {output}: there is no directory {output.parent}; make it first")
    if output and (output.is_dir() or (output.exists() and not os.access(output, os.W_OK))):
        raise InputError(f"--output {output} can't be written; give a file")


def section_head(grid: str, options: argparse.Namespace) -> str:
    """The title of a grid's section, the command that repeats it, and where and when it ran."""
    today = f"{datetime.now(UTC):%-d %B %Y}"
    title = f"## Grid `{grid}` on recipe `{Path(options.recipe).stem}`"
    return f"{title}\n\n```\n{portable_command(options)}\n```\n\n{today}, {describe_machine()}."


def portable_command(options: argparse.Namespace) -> str:
    """The command without where things lie on this machine."""
    shown = [override.partition("=") for override in options.overrides]
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
