"""What came of each case: kept in a file, shown at the end of the tests, and written as a document."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import shorten

from stages.evaluation.markdown_table import markdown_table
from tests import kept
from tests.faults.cases import CASES, DONE, FAILED, INTERRUPTED, KILLED
from tests.faults.world import EVERY, STEPS

SUBJECT = "faults"
ENDED = {KILLED: "killed", DONE: "went on by itself", FAILED: "failed", INTERRUPTED: "interrupted"}
HEAD = ["stage", "fault", "the command", "what it said", "the same command again", "steps repeated", "seconds"]
WIDTH = 160  # letters of a line that was said
HERE = re.compile(r" \(traceback: [^)]*\)|/\S*/case\d+/")
"""What a line says of the directory in which a case ran."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        name: of the case.
        code: exit code of the command that met the fault.
        said: its one line, where it had one.
        again: that of the same command afterwards.
        repeated: steps of the training that the worst restart made once more.
        seconds: of both commands.
    """

    name: str
    code: int
    said: str
    again: str
    repeated: int
    seconds: float

    def row(self) -> list[str]:
        """As the table shows it."""
        stage, _, what = self.name.partition(": ")
        found = "found it done" if self.code == DONE else ""
        texts = (HERE.sub("", text).replace("|", "/") for text in (self.said, self.again or found))
        words = [shorten(text, WIDTH, placeholder=" …") for text in texts]
        return [stage, what, ENDED[self.code], *words, str(self.repeated), f"{self.seconds:.0f}"]


def known() -> dict[str, Outcome]:
    """What is kept, by the names of cases."""
    return kept.known(SUBJECT, Outcome)


def keep(outcome: Outcome) -> None:
    """Keeps an outcome in the place of an earlier one of its case."""
    kept.keep(SUBJECT, outcome)


def table(names: Iterable[str]) -> str:
    """The outcomes of those cases that have one, in the order of the table of cases."""
    found, asked = known(), set(names)
    return markdown_table([HEAD, *(found[case.name].row() for case in CASES if case.name in found.keys() & asked)])


def document() -> str:
    """docs/faults.md."""
    found = {case.name: known()[case.name] for case in CASES if case.name in known()}
    minutes = sum(outcome.seconds for outcome in found.values()) / 60
    return f"""# Faults

`python -m pytest -m faults`, as root, breaks something while a command computes a stage, and gives the same command
again; the {len(found)} rows below took {minutes:.0f} minutes. Each ended with the artifact of a run that nothing
happened to: the same rows and rankings, weights and numbers within 1e-6 in fp32, each stage there once, and no work
directory left. Trainings have {STEPS} steps and a checkpoint every {EVERY}. A restart repeats fewer steps than lie
between two, unless the checkpoint itself could not be stored. A loss that is NaN stops a training, which keeps the
last checkpoint; the same settings stop at the same step.

`python -m tests.faults --output docs/faults.md` writes this page from what the tests left in `build/faults.json`.

{table(found)}
"""
