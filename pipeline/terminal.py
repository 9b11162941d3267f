"""What the commands share: complaints in one line, a stdout that holds nothing but JSON, tables."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from stages.context import InputError, StageError


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def exit_code(action: Callable[[], None]) -> int:
    """Does it; returns 0, or after one line on stderr 2 for bad input and 1 for a damaged store; 130 interrupted."""
    try:
        action()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def keep_stdout() -> int:
    """A copy of stdout for the JSON; from here on descriptor 1 is stderr, for whatever prints, Ray's workers too."""
    sys.stdout.flush()
    copy = os.dup(1)
    os.dup2(2, 1)
    return copy


def open_console(file: TextIO) -> Any:
    """A rich console; wide where the file is no terminal, so that logs keep one line a row."""
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else 140, highlight=False, markup=False, emoji=False)


def text_table(rows: Sequence[Sequence[str]]) -> Any:
    """The rows, the first one as head, as a table for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table
