"""What came of each run on nodes that share nothing: kept in a file, and written as a document."""

from dataclasses import dataclass

from stages.evaluation.markdown_table import markdown_table
from tests import kept
from tests.nodes.runs import RUNS, Run
from tests.nodes.world import program

SUBJECT = "nodes"
HEAD = ["what it shows", "settings", "trained on nodes", "embedded on nodes", "seconds"]


@dataclass(frozen=True)
class Outcome:
    """A run that came to its end.

    Attributes:
        name: of the run.
        trained: the numbers of the nodes that had training processes of it.
        embedded: of those that had embedding actors.
        seconds: from its submission to its end.
    """

    name: str
    trained: list[int]
    embedded: list[int]
    seconds: float

    def cells(self) -> list[str]:
        """As the table shows it."""
        nodes = (", ".join(map(str, some)) or "none" for some in (self.trained, self.embedded))
        return [*nodes, f"{self.seconds:.0f}"]


def keep(outcome: Outcome) -> None:
    """Keeps an outcome in the place of an earlier one of its run."""
    kept.keep(SUBJECT, outcome)


def document() -> str:
    """docs/nodes.md."""
    found = kept.known(SUBJECT, Outcome)
    known = {run.name: found[run.name] for run in RUNS if run.name in found}
    cells = {run.name: known[run.name].cells() if run.name in known else ["not run yet"] * 3 for run in RUNS}
    rows = [[run.name, command(run), *cells[run.name]] for run in RUNS]
    minutes = sum(outcome.seconds for outcome in known.values()) / 60
    return f"""# Nodes that share nothing

`python -m pytest tests/nodes -m nodes`, as root, starts Ray nodes on one machine by the lines of
[cluster.md](cluster.md), each with a home, temporary and working directories that no other sees, and a network address
of its own. An S3 server and an MLflow server are all that they share. Node 0 is the head, on which the program runs;
node 2 joins in the middle of the last run. With the settings of a row `ray job submit` sends
```
{" ".join(program("NAME", "BUCKET", "MLFLOW"))}
```
Of these {len(RUNS)} runs {len(known)} came to their end, in {minutes:.0f} minutes.
`python -m tests.nodes --output docs/nodes.md` writes this page from what the tests left in `build/nodes.json`.

{markdown_table([HEAD, *rows])}
"""


def command(run: Run) -> str:
    """What the run is called with, beside the places of its store and of its tracking server."""
    return f"`--recipe {run.recipe} {' '.join(run.settings)}`"
