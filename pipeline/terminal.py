"""What the commands share: complaints in one line, a stdout that holds nothing but JSON, tables."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.wording import nearest
from stages.contract.context import InputError, StageError

SHOWN = "\n\u200c\u200d"  # not printable by Python's word, and harmless: some scripts and emojis are joined by them
Action = Callable[[argparse.Namespace, dict[str, Any]], None]


class Parser(argparse.ArgumentParser):
    """A command's parser, whose complaints are one line, as everywhere else."""

    def __init__(self, command: str, description: str | None) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        prog = f"python pipeline/{command}.py"
        super().__init__(prog=prog, allow_abbrev=False, description=description, formatter_class=layout)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")

    def parse_mixed(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Options and positionals in any order; raises InputError with the nearest option for an unknown one."""
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            raise InputError(
                f"unknown option '{unknown[0]}'{nearest(unknown[0], self._option_string_actions)}; see --help"
            )
        return parsed


def json_command(
    parse: Callable[[], argparse.Namespace],
    action: Action,
    resumes: Callable[[argparse.Namespace], str] = lambda options: "",
) -> int:
    """A command: does it, complains in one line, with `--json` prints one object on stdout; the exit code.

    Args:
        parse: reads the command line; its `json`, if it has one, says whether the object is wanted.
        action: fills the object on the way, so that a failed command shows how far it came.
        resumes: what to say after an interruption and after a stage that failed; nothing where nothing goes on.
    """
    answer: dict[str, Any] = {}
    out, code, line, next_time = None, 0, "", ""
    try:
        options = parse()
        next_time = resumes(options)
        out = keep_stdout() if getattr(options, "json", False) else None
        action(options, answer)
    except InputError as error:
        code, line = 2, str(error)
    except StageError as error:
        code, line = 1, "; ".join(filter(None, (str(error), next_time)))
    except KeyboardInterrupt:
        code, line = 130, "; ".join(filter(None, ("interrupted", next_time))) if next_time or out else ""
    if line:
        print(f"error: {line}", file=sys.stderr)
    if out is not None:
        # Nobody may read it any more; and names of files may be no UTF-8, which JSON can say in signs of its own.
        opened = os.fdopen(out, "w", encoding="utf-8", errors="backslashreplace")
        with suppress(BrokenPipeError), opened as file:
            shown = finite({**answer, **({"error": line} if line else {})})
            print(json.dumps(shown, ensure_ascii=False, allow_nan=False), file=file)
    return code


def finite(value: Any) -> Any:
    """The value with None for each number in it that is NaN or infinite, which JSON can't write."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep_stdout() -> int:
    """A copy of stdout for the JSON; from here on descriptor 1 is stderr, for whatever prints, Ray's workers too."""
    sys.stdout.flush()
    copy = os.dup(1)
    os.dup2(2, 1)
    return copy


def open_console(file: TextIO) -> Console:
    """A rich console; wide where the file is no terminal, so that logs keep one line a row."""
    return Console(file=file, width=None if file.isatty() else 140, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """The text with � for what a terminal obeys instead of showing it: escapes, and marks that turn the direction."""
    return "".join(sign if sign.isprintable() or sign in SHOWN else "\ufffd" for sign in text)


def text_table(rows: Sequence[Sequence[str]]) -> Table:
    """The rows, the first one as head, as a table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table
