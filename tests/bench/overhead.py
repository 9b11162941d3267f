"""What a run takes beyond its work: every stage beside its own code in one plain process, which `bare` has no Ray in.

Rounds of a whole run with a store of its own, one process and one actor, each followed by the bare loops over what it
made. The first loop imports everything, once, which a run does in each process. Ingest's own time counts on both
sides. PUMA_OVERHEAD is another recipe, with overrides behind it, than the demo's.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.made import ROOT, arguments, call
from tests.bench.turns import ratio

ROUNDS = 5
WHOLE = "the whole run"


def overhead(directory: Path) -> dict[str, Any]:
    """Seconds of the bare loops of a whole run against the run's."""
    rounds = [one_round() for _ in range(ROUNDS)]
    names = list(rounds[0])
    found = {name: [[one[name][side] for one in rounds] for side in (0, 1)] for name in names}
    bare = {name: ratio(alone, whole) for name, (whole, alone) in found.items()}
    ours, rival = ({name: median(both[side]) for name, both in found.items()} for side in (0, 1))
    return {"ratio": bare[WHOLE], "ours": ours, "rival": rival, "section": section(found, bare)}


def one_round() -> dict[str, tuple[float, float]]:
    """(seconds in a run, seconds of the bare loop) of each stage and of all."""
    from tests.support import in_ranks

    recipe, *overrides = os.environ.get("PUMA_OVERHEAD", "demo").split()
    with tempfile.TemporaryDirectory(prefix="puma") as place:
        given = [*arguments(recipe, f"{place}/store", f"{place}/mlflow.db"), "cluster.workers=1", "cluster.actors=1"]
        start = time.perf_counter()
        answer = call([sys.executable, str(ROOT / "pipeline" / "run.py"), *given, *overrides, "--json"])
        whole = time.perf_counter() - start
        stages = {name: one["seconds"] for name, one in json.loads(answer)["stages"].items()}
        case = {"store": f"{place}/store", "result": f"{place}/result.json"}
        in_ranks(1, "tests.bench.bare", case, seconds=3600)
        bare = {"ingest": stages["ingest"], **json.loads(Path(case["result"]).read_text())}
    found = {name: (took, bare[name]) for name, took in stages.items()}
    print(f"overhead: {found}", file=sys.stderr, flush=True)
    return {**found, WHOLE: (whole, sum(bare.values()))}


def section(found: dict[str, list[list[float]]], bare: dict[str, dict[str, float]]) -> str:
    """The measurements as Markdown."""
    lines = [["stage", "s", "its bare loop", "beyond it", "in the rounds"]]
    for name, (whole, alone) in found.items():
        more = {which: 100 * (1 / share - 1) for which, share in bare[name].items()}
        told = [f"{median(whole):.1f}", f"{median(alone):.1f}", f"{more['median']:.0f} %"]
        lines.append([name, *told, f"{more['max']:.0f} to {more['min']:.0f} %"])
    told = "Each stage beside its own code in one plain process; ingest's time counts on both sides of the whole."
    return f"{told}\n\n{markdown_table(lines)}"
