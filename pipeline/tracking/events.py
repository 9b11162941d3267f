"""What is tracked, as events: each is a verb with its arguments, sent to MLflow now or by a later run."""

import base64
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.tracking.registry import register_student

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "puma"
PARAMS_IN_BATCH, METRICS_IN_BATCH, TEXT_LENGTH = 100, 1000, 500  # MLflow's limits

Item = TypeVar("Item")


def apply_event(client: "MlflowClient", event: Mapping[str, Any]) -> Any:
    """Applies one event: `verb`, `run` (its id), `at` (milliseconds), and the arguments of the verb's function."""
    values = {name: value for name, value in event.items() if name not in ("verb", "run", "at")}
    return ACTIONS[event["verb"]](client, event["run"], event["at"], **values)


def create_run(client: "MlflowClient", run_id: str, at: int, name: str, tags: dict[str, str]) -> str:
    """MLflow's id of a new run; the event's own is what it is called until it has been sent."""
    return client.create_run(ensure_experiment(client), start_time=at, run_name=name, tags=tags).info.run_id


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
    source = run_id if has_run(client, run_id) else None
    return register_student(client, ensure_experiment(client), name, tags, metrics, source, alias)


def has_run(client: "MlflowClient", run_id: str) -> bool:
    """Whether MLflow has the run. Raises where it can't be asked."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


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


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def batches(items: list[Item], size: int) -> Iterable[list[Item]]:
    """The items in lists of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
