"""What a command costs that has nothing to do: `run.py` where every stage is cached, and `--plan`.

In turns with a process that only opens MLflow's database, as a cached run has to: the same settings, collector spared.
Seconds are those of the clock, interpreter included.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.made import ROOT, call, made
from tests.bench.turns import ratio, turns

ROUNDS = 5
OPENED = """
from pipeline.collector import spare_collector
spare_collector()
from pipeline.tracking.link import connect
connect({uri!r}, create=False).get_experiment_by_name("puma")
"""


def starts(directory: Path) -> dict[str, Any]:
    """Seconds of a run whose stages are all cached, against those of opening MLflow alone."""
    run = [sys.executable, str(ROOT / "pipeline" / "run.py"), *made()]
    uri = made()[-1].removeprefix("tracking_uri=")
    commands = {
        "`run.py`, all cached": run,
        "`run.py --plan`": [*run, "--plan"],
        "MLflow's database opened, no more": [sys.executable, "-c", OPENED.format(uri=uri)],
    }
    found = turns({name: partial(call, command) for name, command in commands.items()}, ROUNDS)
    cached, _, opened = found.values()
    seconds = [{name: median(times)} for name, times in found.items()]
    sides = {"ours": seconds[0] | seconds[1], "rival": seconds[2]}
    return {"ratio": ratio(opened, cached), **sides, "section": section(found)}


def section(found: dict[str, list[float]]) -> str:
    """The measurements as Markdown."""
    lines = [[name, f"{median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}"] for name, times in found.items()]
    return markdown_table([["command", "s", "in the rounds"], *lines])
