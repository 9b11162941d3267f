"""The section of a Markdown file that a grid's tables are written to: its head, and its place in the file."""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract.context import InputError
from stages.contract.params import cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = ("store", "tracking_uri")
"""Overrides that say where and not what: they don't belong in a document."""


def check_output(output: Path | None) -> None:
    """Refuses a file that could not be written hours later."""
    if output and not output.resolve().parent.is_dir():
        raise InputError(f"--output {output}: there is no directory {output.parent}; make it first")
    written = [output.resolve().parent, *([output] if output.exists() else [])] if output else []  # it is replaced
    if output and (output.is_dir() or not all(os.access(path, os.W_OK) for path in written)):
        raise InputError(f"--output {output} can't be written; give a file in a directory that can be")


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


def describe_machine() -> str:
    """`two cores of an AMD EPYC 7763, 15 GiB memory, no GPU`, as far as the machine says."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores()} cores of {processor()}, {memory:.0f} GiB of memory, {graphics() or 'no GPU'}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def graphics() -> str:
    """The GPUs' names, or nothing."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = done.stdout.split("\n")[:-1] if done.returncode == 0 else []
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def write_pictures(output: Path | None, name: str, pictures: Mapping[str, "Figure"]) -> dict[str, str]:
    """Writes the pictures beside the Markdown file; {what each shows: its file's name}. None without such a file."""
    if output is None:
        return {}
    files = {title: f"{name}-{number}.png" for number, title in enumerate(pictures, 1)}
    for title, file in files.items():
        pictures[title].savefig(output.with_name(file), dpi=110)
    return files


def write_section(path: Path, name: str, section: str) -> None:
    """Puts the section between its marks in the file, or at the end; all else stays. A new file is headed by name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = f"{start}\n{section}\n{end}\n"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {path.stem.capitalize()}\n"
    marked = re.compile(f"{re.escape(start)}.*?{re.escape(end)}\n?", re.DOTALL)
    text = marked.sub(lambda _: block, text) if marked.search(text) else f"{text.rstrip()}\n\n{block}"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
