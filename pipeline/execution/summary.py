"""What a run shows: the plan before it; after it the student beside its teacher, where it lies, and what to try next.

The numbers and their tables are made by the stage `evaluate`; here they are only taken out of its artifact.
"""

import shlex
from collections.abc import Mapping, Sequence

from pipeline.artifacts.store import Artifact
from pipeline.config.sections import Config
from pipeline.planning.dag import OWN_DATA
from pipeline.planning.plan import Decision
from pipeline.wording import depth_title
from stages.data.ingest.wording import rejects_line
from stages.evaluation.markdown_table import markdown_table

REASONS_SHOWN = 4
SOURCES = {"ingest": "rejected rows", OWN_DATA: f"rejected rows of {OWN_DATA}"}
"""The stages that read data from outside, and what their bad rows are called."""


def plan_rows(decisions: Sequence[Decision]) -> list[list[str]]:
    """Stage, key, action and reasons of each decision."""
    rows = [["stage", "key", "action", "reason"]]
    for decision in decisions:
        shown = list(decision.reasons[:REASONS_SHOWN])
        hidden = len(decision.reasons) - len(shown)
        shown += [f"and {hidden} more"] if hidden else []
        rows.append([decision.stage, decision.key, decision.action, "\n".join(shown)])
    return rows


def closing_lines(artifacts: Mapping[str, Artifact], config: Config) -> list[str]:
    """The result table, what was left out, where the student lies and the next command, as far as the run came."""
    lines = [line for source in SOURCES if source in artifacts for line in source_lines(source, artifacts[source])]
    if "index" in artifacts and (left_out := artifacts["index"].manifest.get("metrics", {}).get("rejects")):
        lines.append(f"rejected rows of index.corpus: {rejects_line(left_out)}")
    if "evaluate" in artifacts and artifacts["evaluate"].has("table.txt"):
        lines = [artifacts["evaluate"].read_bytes("table.txt").decode().rstrip(), "", *lines]
    if made := [artifacts[name] for name in ("train", "distill") if name in artifacts]:
        student = made[0]  # its place only: the weights of a store elsewhere are not fetched to be named
        lines.append(f"student: {student.uri}/{student.attempt}/model")
    if "evaluate" in artifacts and artifacts["evaluate"].has("report.html"):
        lines.append(f"report: {artifacts['evaluate'].local('report.html')}")
    if "features" in artifacts and artifacts["features"].has("depth_curve.png"):
        lines.append(f"depths: {artifacts['features'].local('depth_curve.png')}")
    if "index" in artifacts:
        places = {name: getattr(config, name) for name in ("store", "store_endpoint")}
        store = [f"{name}={place}" for name, place in places.items() if place != Config.model_fields[name].default]
        words = ["python", "pipeline/search.py", "--text", example_query(artifacts["index"]), *store]
        lines.append(f"next: {shlex.join(words)}")
    return lines


def example_query(index: Artifact) -> str:
    """A query that the indexed corpus may answer; what a source of the user's own holds is not known here."""
    config = index.manifest["config"]
    drawn = config["data"]["kind"] == "scenes" and not config["index"]["corpus"]
    return "a red circle" if drawn else "WHAT YOU LOOK FOR"


def source_lines(source: str, ingest: Artifact) -> list[str]:
    """What was left out of a source, and a warning where queries have no instruction."""
    from stages.data.ingest.wording import bare_line

    bare = bare_line(ingest.read_json("stats.json").get("queries", {}))
    return [f"{SOURCES[source]}: {rejected(ingest)}", *([f"warning: {bare}"] if bare else [])]


def rejected(ingest: Artifact) -> str:
    """How many rows of the source were left out, and why; the rows themselves lie in `rejects/` of the artifact."""
    return rejects_line(ingest.read_json("stats.json")["rejects"])


def run_note(decisions: Sequence[Decision], artifacts: Mapping[str, Artifact], command: str) -> str:
    """The description of the run in MLflow: result, stages, and the command that repeats it."""
    parts = []
    for pool in ("local", "union"):
        name = f"tables/{pool}.md"
        if "evaluate" in artifacts and artifacts["evaluate"].has(name):
            score = "M-BEIR" if "mbeir" in artifacts["evaluate"].manifest["metrics"]["student"] else "hit@5"
            parts.append(f"### {score}, {pool} pool\n\n{artifacts['evaluate'].read_bytes(name).decode()}")
    if "features" in artifacts and artifacts["features"].has("depth_curve.md"):
        table = artifacts["features"].read_bytes("depth_curve.md").decode()
        parts.append(f"### {depth_title(artifacts['features'].read_json('depth_curve.json'))}\n\n{table}")
    for source, name in SOURCES.items():
        if source in artifacts:
            parts.append(f"### {name.capitalize()}\n\n{rejected(artifacts[source])}")
    parts.append(f"### Stages\n\n{markdown_table(plan_rows(decisions))}")
    parts.append(f"### Again\n\n```\n{command}\n```")
    return "\n\n".join(parts)
