"""Which directory `student.model` means: a registered model, an artifact of the store, or the directory itself.

    student.model=models:/puma@champion     the registered student that the alias points to; also models:/puma/3
    student.model=.puma/store/train/KEY     the student of an artifact; also s3://bucket/prefix/train/KEY
    student.model=DIRECTORY                 an exported student; also s3://… as the line `student:` of a run has it

One in a bucket is fetched to this machine's cache; workers of the bucket get it from the artifact (`Attempt.send`).

`student=…` is short for it on the command line.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.store import Store, open_store
from pipeline.config.checkpoint import check_weights
from pipeline.config.sections import Config
from pipeline.tracking.client import resolve_uri
from stages.contract.context import InputError, StageError
from stages.model.identity import check_student

BUCKETED = re.compile(r"(?P<root>s3://.+)/(?P<stage>train|distill)/(?P<key>[^/]+)(/(?P<attempt>[^/]+)/model)?/?")
REGISTERED = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))")


def with_student(config: Config) -> Config:
    """The configuration with `student.model` as the directory that it means; unchanged where it is not set.

    Raises InputError where it means none, or one with a damaged file.
    """
    if not config.student.model:
        return config
    directory = find_student(config.student.model, config.tracking_uri, config.store_endpoint)
    check_student(directory)
    check_weights(directory)
    check_settings(directory)
    return config.model_copy(update={"student": config.student.model_copy(update={"model": str(directory)})})


def check_settings(directory: Path) -> None:
    """Raises InputError where a file of a student's settings can't be read."""
    for path in sorted(directory.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError):
            raise InputError(f"{path} is no JSON, or not the whole of it; copy it anew from the student") from None


def find_student(reference: str, tracking_uri: str, endpoint: str = "") -> Path:
    """The directory that a reference means. Raises InputError."""
    if reference.startswith("models:"):
        return registered_weights(reference, tracking_uri, endpoint)
    if reference.startswith("s3://"):
        return bucket_weights(reference, reference, endpoint)
    path = Path(reference).expanduser()
    if not path.is_dir():
        raise InputError(f"student.model={reference} is not there; give models:/NAME@ALIAS or a student's directory")
    if not (path / "manifest.json").is_file():
        return path.resolve()
    stage, key = path.resolve().parts[-2:]
    try:
        return Path(open_store(str(path.resolve().parents[1])).artifact(stage, key).local("model"))
    except StageError as error:
        raise InputError(f"student.model={reference}: {error}") from None


def registered_weights(reference: str, tracking_uri: str, endpoint: str = "") -> Path:
    """The weights of a registered model, which its tag `weights` points to. Raises InputError."""
    place = weights_tag(reference, tracking_uri)
    if place.startswith("s3://"):
        return bucket_weights(reference, place, endpoint)
    if not place or not Path(place).is_dir():
        raise InputError(
            f"student.model={reference}: its weights {place or '(no tag)'} are not on this machine; give a directory"
        )
    return Path(place)


def bucket_weights(reference: str, place: str, endpoint: str) -> Path:
    """This machine's copy of a student in a bucket, which `place` names with or without its attempt.

    Raises InputError, which calls it `reference`.
    """
    match = BUCKETED.fullmatch(place)
    if match is None:
        raise InputError(
            f"student.model={reference} is no student of a store; give s3://BUCKET/PREFIX/train/KEY, as a run's last"
            " lines name it, or copy it to a directory"
        )
    stage, key, attempt = match["stage"], match["key"], match["attempt"]
    try:
        artifact = open_store(match["root"], endpoint).artifact(stage, key)
        if attempt in (None, artifact.attempt):
            return Path(artifact.local("model"))
    except StageError as error:
        raise InputError(f"student.model={reference}: {error}") from None
    raise InputError(
        f"student.model={reference}: {stage}/{key} was made again since;"
        f" give {match['root']}/{stage}/{key} for what is there, or run the training again to register that"
    )


def weights_tag(reference: str, tracking_uri: str) -> str:
    """Where the weights of a registered model lie, by its version's tag; empty without one. Raises InputError."""
    match = REGISTERED.fullmatch(reference)
    if match is None:
        raise InputError(
            f"student.model={reference} is no registered model; write models:/NAME@ALIAS or models:/NAME/3"
        )
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    place = resolve_uri(tracking_uri)
    if place.startswith("sqlite:///") and not Path(place.removeprefix("sqlite:///")).is_file():
        raise InputError(f"student.model={reference}: there is no registry at {place}; give tracking_uri=… of the run")
    client = MlflowClient(place)
    try:
        if match["alias"]:
            version = client.get_model_version_by_alias(match["name"], match["alias"])
        else:
            version = client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"student.model={reference} is not in the registry at {place}: {reason}") from None
    return version.tags.get("weights", "")


def index_student(store: Store, card: Mapping[str, Any], given: str = "") -> Path | None:
    """The directory of the student that made the index of your own corpus; None where the card's is the one.

    Args:
        store: of the index. A student that is an artifact of it is found there, wherever the store is by now.
        card: `retriever.json`.
        given: a directory that holds the student instead.
    """
    student = card.get("student", {})
    if given and not student:
        raise InputError(f"student={given}: this index is a run's and has that run's student; leave it out")
    if given:
        return Path(given)
    if "key" not in student or not store.has(student["stage"], student["key"]):
        return None
    artifact = store.artifact(student["stage"], student["key"])
    return Path(artifact.local("model")) if artifact.attempt == student["attempt"] else None
