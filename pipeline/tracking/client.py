"""Runs, curves, data digests, pictures and the registered student in MLflow.

One run of the experiment `puma` stands for a run of the pipeline and holds one child for each stage, the cached ones
too: they point to the run that computed them and repeat its headline numbers, so that no tree has holes.

Only `MlflowClient` is used, with batches: the fluent API (`mlflow.start_run`) keeps the current run in global state
and takes a second longer to import. Weights are registered by reference and never copied: they lie in the store.

Tracking never breaks a run and never holds it up. Everything tracked is an event (`carry`): the first that fails is
told in one line, from there on they are kept on disk (spool.py), and the next run that reaches the server sends them.
"""

import base64
import hashlib
import io
import json
import logging
import math
import os
import re
import socket
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pipeline.config.values import flatten, is_number
from pipeline.tracking.spool import Spool, renamed

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "puma"
REGISTERED = "registered"  # the tag of a run that registered a student: what it registered
KNOCK_SECONDS = 2
OFFLINE = "offline-"  # how the ids of runs begin that no server knows yet
REFUSED = "refuses something to track, which is lost, and of the next ones nothing is said"
PARAMS_IN_BATCH, METRICS_IN_BATCH, TEXT_LENGTH, NOTE_LENGTH = 100, 1000, 500, 8000  # MLflow's limits, and a kind one

Result = TypeVar("Result")


def resolve_uri(configured: str, home: Path = Path(".puma")) -> str:
    """Where to track: as configured, else MLFLOW_TRACKING_URI, else an SQLite file below `home`."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{home.resolve() / 'mlflow.db'}"


class Link:
    """A connection to MLflow that fails at most once: it says so in one line, and all later events wait on disk.

    What the server refuses though it answers is no such failure: it would refuse that again, and take the rest.
    """

    def __init__(self, uri: str, create: bool = False) -> None:
        self.uri, self.create, self.broken, self.refused = uri, create, False, False
        self.spool = Spool(uri)
        self._client: MlflowClient | None = None

    def twin(self) -> "Link":
        """A connection of its own to the same place, for another process: it never makes an SQLite file."""
        link = Link(self.uri)
        link.broken = self.broken
        return link

    def __getstate__(self) -> dict[str, Any]:
        return self.twin().__dict__

    def __call__(self, action: "Callable[[MlflowClient], Result]") -> Result | None:
        """The result of `action(client)`, or None once MLflow has failed."""
        if self.broken:
            return None
        try:
            self._client = self._client or connect(self.uri, self.create)
            return action(self._client)
        except Exception as error:  # whatever MLflow, SQLAlchemy or the network may raise
            self.broken = not refused(error)
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            why = "can't be reached, what it would track is kept for the next run"
            if self.broken or not self.refused:
                print(f"warning: {self.uri} {why if self.broken else REFUSED}: {text}", file=sys.stderr)
            self.refused = True
            return None

    def send(self, verb: str, run: str, **values: Any) -> Any:
        """Carries an event out, see ACTIONS; keeps it on disk where MLflow can't be reached. Never raises."""
        event = {"verb": verb, "run": run, "at": int(time.time() * 1000), **values}
        if OFFLINE in json.dumps([run, values.get("tags")]):
            event = renamed(event, self.spool.ids())
        done = self(lambda client: carry(client, event))
        self.broken = self.broken or (verb == "create" and done is None)  # without it nothing else has a place
        if self.broken:
            self.spool.write(event)
        return done

    def deliver(self) -> None:
        """Sends what earlier runs had to keep."""
        arrived = self(lambda client: self.spool.deliver(partial(carry, client), partial(reachable, client)))
        if arrived:
            print(f"{arrived} events of earlier runs were sent to {self.uri}", file=sys.stderr)
        self.spool.expire()


def connect(uri: str, create: bool) -> "MlflowClient":
    """A client; with `create` an SQLite file is made where there is none, as on the machine that starts the run."""
    # A server that is gone must cost a few seconds, not the minutes of the default eight tries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # as with Ray: a run tells nobody of itself
    knock(uri)
    database = sqlite_file(uri)
    if database and not create and not database.exists():
        raise FileNotFoundError(f"{database} is not on this machine; many machines need a tracking server")
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database)) as probe:  # MLflow tries for 100 s before it says what is wrong
            probe.execute("PRAGMA user_version").fetchone()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets its own levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def knock(uri: str) -> None:
    """Raises OSError within two seconds where no server listens; MLflow itself would wait for each of its tries."""
    address = urlsplit(uri)
    if address.scheme in ("http", "https") and address.hostname:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=KNOCK_SECONDS).close()


def refused(error: Exception) -> bool:
    """Whether MLflow answered, and will answer likewise next time: it asks for something else, not for patience."""
    status = getattr(error, "get_http_status_code", lambda: 500)()
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def reachable(client: "MlflowClient") -> bool:
    """Whether MLflow answers."""
    try:
        client.get_experiment_by_name(EXPERIMENT)
    except Exception:  # whatever MLflow or the network may raise
        return False
    return True


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


class StageRun:
    """The MLflow run of one stage; see `stages.contract.context.Tracker`. Picklable, and it never raises."""

    def __init__(self, link: Link, run_id: str) -> None:
        self.link, self.run_id = link, run_id

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers, over time when `step` is given."""
        self.link.send("metrics", self.run_id, values=numbers(values), step=step or 0)

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters."""
        self.link.send("params", self.run_id, values={name: str(value) for name, value in values.items()})

    def figure(self, name: str, figure: Any) -> None:
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
        return StageRun(self.link.twin(), self.run_id)


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
        """Registers the student that `tags` points to; says which version it is and whether it is the champion.

        See `pipeline.tracking.registry.register_student`. A tag of this run tells later ones that it is done.
        """
        values = {"name": name, "tags": dict(tags), "metrics": numbers(metrics), "alias": alias}
        said = self.link.send("register", run_id, **values)
        self.tag(REGISTERED, registration(name, tags, alias))
        return said

    def is_registered(self, name: str, tags: Mapping[str, str], alias: str) -> bool:
        """Whether an earlier run registered just this; asks the runs, so that the registry need not be opened."""
        wanted = f"tags.{REGISTERED} = '{registration(name, tags, alias)}'"
        return bool(self.link(lambda client: client.search_runs([self.experiment_id], wanted, max_results=1)))

    def interrupted(self, run_id: str) -> None:
        """Ends a run that was killed before it could do so itself, and its stages."""
        self.link.send("interrupt", run_id)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        made = f"{OFFLINE}{uuid.uuid4().hex}"
        return self.link.send("create", made, name=name, tags=dict(tags)) or made


# -------------------------------------------------------------------------- events, carried out now or by a later run


def carry(client: "MlflowClient", event: Mapping[str, Any]) -> Any:
    """Carries out one event: `verb`, `run` (its id), `at` (milliseconds), and the arguments of the verb's function."""
    values = {name: value for name, value in event.items() if name not in ("verb", "run", "at")}
    return ACTIONS[event["verb"]](client, event["run"], event["at"], **values)


def create_run(client: "MlflowClient", run_id: str, at: int, name: str, tags: dict[str, str]) -> str:
    """MLflow's id of a new run; the event's own is what it is called until it has been sent."""
    made = client.create_run(ensure_experiment(client), start_time=at, run_name=name, tags=tags)
    return made.info.run_id


def end_run(client: "MlflowClient", run_id: str, at: int, status: str) -> None:
    """Ends a run."""
    client.set_terminated(run_id, status, at)


def interrupt_run(client: "MlflowClient", run_id: str, at: int) -> None:
    """Ends a run and those of its children that have no end."""
    below = f"tags.mlflow.parentRunId = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([ensure_experiment(client)], below):
        client.set_terminated(child.info.run_id, "KILLED", at)
    client.set_terminated(run_id, "KILLED", at)


def set_tags(client: "MlflowClient", run_id: str, at: int, tags: dict[str, str]) -> None:
    """Sets tags."""
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def log_text(client: "MlflowClient", run_id: str, at: int, name: str, content: str) -> None:
    """Logs a text artifact."""
    client.log_text(run_id, content, name)


def log_picture(client: "MlflowClient", run_id: str, at: int, name: str, content: str) -> None:
    """Logs a picture that came as base64."""
    folder, _, file = name.rpartition("/")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, file)
        path.write_bytes(base64.b64decode(content))
        client.log_artifact(run_id, str(path), folder or None)


def ensure_experiment(client: "MlflowClient") -> str:
    """The id of the experiment, made when missing; files beside an SQLite database, else where the server says."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    database = sqlite_file(client.tracking_uri)
    place = (database.resolve().parent / "mlartifacts").as_uri() if database else None
    return client.create_experiment(EXPERIMENT, artifact_location=place)


def log_metrics(client: "MlflowClient", run_id: str, at: int, values: Mapping[str, float], step: int) -> None:
    """Logs `numbers`."""
    from mlflow.entities import Metric

    metrics = [Metric(name, value, at, step) for name, value in values.items()]
    for part in batches(metrics, METRICS_IN_BATCH):
        client.log_batch(run_id, metrics=part)


def log_params(client: "MlflowClient", run_id: str, at: int, values: Mapping[str, str]) -> None:
    """Logs parameters, long values cut."""
    from mlflow.entities import Param

    params = [Param(name, value[:TEXT_LENGTH]) for name, value in values.items()]
    for part in batches(params, PARAMS_IN_BATCH):
        client.log_batch(run_id, params=part)


def log_dataset(client: "MlflowClient", run_id: str, at: int, name: str, source: str, digest: str, role: str) -> None:
    """Logs a dataset by name and digest. `mlflow.data` would do the same after importing pandas."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = "s3" if source.startswith("s3://") else "local"
    dataset = Dataset(name=name, digest=digest[:36], source_type=kind, source=json.dumps({"uri": source}))
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", role)])])


def register(
    client: "MlflowClient",
    run_id: str,
    at: int,
    name: str,
    tags: dict[str, str],
    metrics: dict[str, float],
    alias: str,
) -> str:
    """Registers a student; see `pipeline.tracking.registry`. Its run is left out where it was tracked elsewhere."""
    from pipeline.tracking.registry import register_student

    source = run_id if knows(client, run_id) else None
    return register_student(client, ensure_experiment(client), name, tags, metrics, source, alias)


def knows(client: "MlflowClient", run_id: str) -> bool:
    """Whether MLflow has the run. Raises where it can't be asked."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def registration(name: str, tags: Mapping[str, str], alias: str) -> str:
    """A digest of what is registered: which student under which name and alias, by which evaluation."""
    return hashlib.sha256(json.dumps([name, dict(tags), alias], sort_keys=True).encode()).hexdigest()[:16]


ACTIONS: dict[str, Callable[..., Any]] = {
    "create": create_run,
    "end": end_run,
    "interrupt": interrupt_run,
    "tags": set_tags,
    "metrics": log_metrics,
    "params": log_params,
    "text": log_text,
    "picture": log_picture,
    "dataset": log_dataset,
    "register": register,
}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """All finite numbers of a nested mapping, named by their path as MLflow can store it."""
    found = {metric_name(name): float(value) for name, value in flatten(values) if is_number(value)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def metric_name(name: str) -> str:
    """`hit@5[image→text]` as MLflow can store it: `hit_at_5/image-text`."""
    plain = name.replace("@", "_at_").replace("→", "-").replace("[", "/").replace("]", "")
    return re.sub(r"[^\w/.\- :]", "_", plain)[:250]


def batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    """The items in lists of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
