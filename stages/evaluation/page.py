"""`report.html`: what a person wants to look at before shipping a student, in one file that asks nobody for anything.

Numbers are views of metrics.json; pictures are thumbnails as data URIs, so the file stays below a few megabytes. All
text is escaped by Jinja, and the page's own policy forbids scripts and requests. The template lies beside this module;
a changed template shows in the next evaluation.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from stages.contract.context import Artifact, Context
from stages.data.ingest.wording import rejects_line
from stages.evaluation.comparison import (
    SCOPES,
    SMALLER,
    asymmetric_values,
    is_mbeir,
    is_searched,
    kept,
    labels,
    measure_rows,
    measured,
    missed_line,
    model_rows,
    quality,
    score,
    score_meaning,
    score_name,
    smaller_line,
    smaller_rows,
    stored_line,
    timed,
    untrained,
)
from stages.evaluation.plots import draw_cost, draw_depths

IN_NO_KEY = True  # shows what was measured

TEMPLATE = "report.html.jinja"
NOTES = """hit@k is 1 when any relevant candidate is among the first k (M-BEIR calls it Recall@k); recall@k is the
share of the relevant candidates that were found. Chance is the exact expectation of a random ranking. Means weigh
every set the same. A query's own picture stays in the pool, as in M-BEIR. Latency is end to end for one query, both
models in one process, turn by turn. The teacher is the run's backbone; the fair upper bound, the whole backbone with
the student's training, comes from `python pipeline/ablate.py RECIPE upper_bound`."""
SETTINGS = ("seed", "data.kind", "backbone.source", "student.layers", "train.loss", "train.steps", "train.batch_size")
"""Of the configuration that the student was trained with: by what one run is known from another at a glance."""


def write_page(context: Context, metrics: Mapping[str, Any], examples: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Writes `report.html` into the artifact and shows it in the tracker."""
    html = render(
        metrics, examples, read_curve(context.inputs), identity(context), read_parity(context.inputs["train"])
    )
    context.output.write_bytes("report.html", html.encode())
    context.tracker.text("report.html", html)


def render(
    metrics: Mapping[str, Any],
    examples: Mapping[str, Sequence[dict[str, Any]]],
    curve: Mapping[str, Any] | None,
    facts: Mapping[str, str],
    parity: Mapping[str, Any] | None,
) -> str:
    """The page.

    Args:
        metrics: the content of metrics.json.
        examples: good and bad retrievals by `stages.evaluation.examples.collect`.
        curve: the content of depth_curve.json, where there is one.
        facts: what identifies the run, in the order shown.
        parity: the student's parity report, where there is one.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda value: f"{value:.3f}"
    names = labels(metrics)
    return environment.get_template(TEMPLATE).render(
        score=score,
        score_name="M-BEIR average" if is_mbeir(metrics) else "mean hit@5",
        score_meaning=score_meaning(metrics),
        missed=missed_line(metrics),
        untrained=untrained(metrics),
        kept=[kept(metrics, {model: score(metrics[model], scope) for model in measured(metrics)}) for scope in SCOPES],
        models=measured(metrics),
        timed=timed(metrics),
        metrics=metrics,
        scopes={scope: list(set_lines(metrics, scope)) for scope in SCOPES},
        measures=list(measure_rows(metrics)),
        smaller=(SMALLER, smaller_line(metrics), smaller_rows(metrics)),
        stored=stored_line(metrics),
        asymmetric=asymmetric_values(metrics),
        searched=is_searched(metrics),
        costs=list(model_rows(metrics)),
        depth_plot=svg(draw_depths(curve, depth_of(metrics["student"]))) if curve else None,
        cost_plot=svg(draw_cost(metrics)),
        kinds=[(kind, [{**one, "label": names[one["task"]]} for one in examples[kind]]) for kind in ("good", "bad")],
        facts=facts,
        parity=parity,
        notes=NOTES.replace("\n", " "),
    )


def set_lines(metrics: Mapping[str, Any], scope: str) -> Iterator[dict[str, Any]]:
    """A line of the quality table for each set, then the headline."""
    models = measured(metrics)
    for name, label in labels(metrics).items():
        task = metrics["student"][scope]["tasks"][name]
        values = {model: quality(metrics, model, scope, name) for model in models}
        sizes = {"queries": task["queries"], "pool": task["pool_size"]}
        yield {"label": label, **sizes, "chance": quality(metrics, "chance", scope, name), "values": values}
    means = {model: score(metrics[model], scope) for model in models}
    chance = score(metrics["chance"], scope)
    yield {"label": score_name(metrics), "queries": None, "pool": None, "chance": chance, "values": means}


def svg(figure: Figure) -> str:
    """A figure as a data URI, with text as text: small, sharp at any size, and in the reader's own typeface."""
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "puma", "font.family": "sans-serif"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def depth_of(student: Mapping[str, Any]) -> int:
    """Where a student stands on the depth curve; 0 where it has other layers than the teacher's first."""
    return 0 if "kept_layers" in student else student["layers"]


def read_curve(inputs: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """The depth curve of the run's teacher."""
    return _read(inputs["features"], "depth_curve.json") if "features" in inputs else None


def read_parity(train: Artifact) -> dict[str, Any] | None:
    """The parity report of the student; a student that was given from outside has none."""
    return _read(train, "parity.json")


def _read(artifact: Artifact, name: str) -> dict[str, Any] | None:
    """A JSON file of an artifact that may lack it."""
    listed = {entry["path"] for entry in artifact.manifest.get("files", ())}
    return artifact.read_json(name) if name in listed else None


def identity(context: Context) -> dict[str, str]:
    """What identifies this run: when, from which code, data and settings the student was trained; all keys."""
    origin = context.inputs["train"].manifest
    git, config = origin.get("git") or {}, origin.get("config") or {}
    facts = {
        "student made": str(origin.get("created", ""))[:19].replace("T", " "),
        "pipeline run": origin.get("run", ""),
    }
    if git.get("commit"):
        facts["code"] = git["commit"][:12] + (" with changes" if git.get("dirty") else "")
    facts |= {path: _setting(config, path) for path in SETTINGS}
    if stats := _read(context.inputs["ingest"], "stats.json"):
        facts["rejected rows"] = rejects_line(stats["rejects"])
    facts |= {f"{name} artifact": artifact.key for name, artifact in context.inputs.items()}
    facts["evaluate artifact"] = context.output.key
    packages = origin.get("packages") or {}
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return {name: value for name, value in facts.items() if value}


def _setting(config: Mapping[str, Any], path: str) -> str:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)
