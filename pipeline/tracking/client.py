"""Runs, curves, data digests, pictures and the registered student in MLflow.

One run of the experiment `puma` stands for a run of the pipeline and holds one child for each stage, the cached ones
too: they point to the run that computed them and repeat its headline numbers, so that no tree has holes.

Only `MlflowClient` is used, with batches: the fluent API (`mlflow.start_run`) keeps the current run in global state
and takes a second longer to import. Weights are registered by reference and never copied: they lie in the store.
"""

import base64
import hashlib
import io
import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.events import ensure_experiment
from pipeline.tracking.link import Link
from pipeline.tracking.spool import OFFLINE, REGISTERED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE_LENGTH = 8000


def resolve_uri(configured: str, home: Path = Path(".puma")) -> str:
    """Where to track: as configured, else MLFLOW_TRACKING_URI, else an SQLite file below `home`."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{home.resolve() / 'mlflow.db'}"


class StageRun:
    """The MLflow run of one stage; see `stages.contract.context.Tracker`. Picklable, and it never raises."""

    def __init__(self, link: Link, run_id: str) -> None:
        self.link, self.run_id = link, run_id

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Logs the numbers of a (nested) mapping, over time when `step` is given."""
        self.link.send("metrics", self.run_id, values=numbers(values), step=step or 0)

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters."""
        self.link.send("params", self.run_id, values={name: str(value) for name, value in values.items()})

    def figure(self, name: str, figure: "Figure") -> None:
        """Logs a matplotlib figure as the artifact `name` (ends in .png)."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        self.link.send("picture", self.run_id, name=name, content=base64.b64encode(buffer.getvalue()).decode())

    def text(self, name: str, content: str) -> None:
        """Logs a text, CSV, HTML or JSON artifact `name`."""
        self.link.send("text", self.run_id, name=name, content=content)

    def dataset(self, name: str, source: str, digest: str, role: str) -> None:
        """Logs which data the run read or wrote, without loading it."""
        self.link.send("dataset", self.run_id, name=name, source=source, digest=digest, role=role)

    def tag(self, name: str, value: str) -> None:
        """Sets one tag."""
        self.link.send("tags", self.run_id, tags={name: value})

    def end(self, status: str) -> None:
        """Ends the run: FINISHED, FAILED or KILLED."""
        self.link.send("end", self.run_id, status=status)

    def handle(self) -> "StageRun":
        """The same for a worker process, with a connection of its own."""
        return StageRun(self.link.for_worker(), self.run_id)


class PipelineRun(StageRun):
    """The MLflow run of a whole pipeline run, and the parent of its stages."""

    def __init__(self, uri: str, name: str, tags: Mapping[str, str]) -> None:
        super().__init__(Link(uri, create=True), "")
        self.link.deliver()
        self.experiment_id = self.link(ensure_experiment) or ""
        self.run_id = self._create(name, tags)

    def stage(self, name: str, tags: Mapping[str, str]) -> StageRun:
        """The child run of a stage."""
        return self.child(name, {**tags, "stage": name})

    def child(self, name: str, tags: Mapping[str, str]) -> StageRun:
        """A run below this one."""
        return StageRun(self.link, self._create(name, {**tags, "mlflow.parentRunId": self.run_id}))

    def note(self, markdown: str) -> None:
        """The description that the run's page shows."""
        self.tag("mlflow.note.content", markdown[:NOTE_LENGTH])

    def ids(self) -> dict[str, str]:
        """Where to find the run."""
        return {"experiment_id": self.experiment_id, "run_id": self.run_id, "tracking_uri": self.link.uri}

    def register(
        self, name: str, tags: Mapping[str, str], metrics: Mapping[str, Any], run_id: str, alias: str = "auto"
    ) -> str | None:
        """Registers the student that `tags` points to; the line that says which version and alias it is.

        See `pipeline.tracking.registry.register_student`. A tag of this run shows later ones that it is done,
        or waits on disk for it; they try again what MLflow refused.
        """
        values = {"name": name, "tags": dict(tags), "metrics": numbers(metrics), "alias": alias}
        message = self.link.send("register", run_id, **values)
        if message or self.link.broken:
            self.tag(REGISTERED, registration(name, tags, alias))
        return message

    def is_registered(self, name: str, tags: Mapping[str, str], alias: str) -> bool:
        """Whether an earlier run registered just this; asks the runs, so that the registry need not be opened."""
        wanted = f"tags.{REGISTERED} = '{registration(name, tags, alias)}'"
        return bool(self.link(lambda client: client.search_runs([self.experiment_id], wanted, max_results=1)))

    def interrupted(self, run_id: str) -> None:
        """Ends a run that was killed before it could do so itself, and its stages."""
        self.link.send("interrupt", run_id)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        own = f"{OFFLINE}{uuid.uuid4().hex}"
        return self.link.send("create", own, name=name, tags=dict(tags)) or own


def registration(name: str, tags: Mapping[str, str], alias: str) -> str:
    """A digest of what is registered: which student under which name and alias, by which evaluation."""
    return hashlib.sha256(json.dumps([name, dict(tags), alias], sort_keys=True).encode()).hexdigest()[:16]


def numbers(values: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The finite numbers of a nested mapping, named by their path as MLflow can store it; `/` groups its charts."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[metric_name(f"{above}{name}")] = float(value)
    return found


def metric_name(name: str) -> str:
    """`hit@5[image→text]` as MLflow can store it: `hit_at_5/image-text`."""
    plain = name.replace("@", "_at_").replace("→", "-").replace("[", "/").replace("]", "")
    parts = re.sub(r"[^\w/.\- :]", "_", plain)[:250].split("/")
    return "/".join(part for part in parts if part.strip("."))  # a name is a path, which has to be its shortest form
