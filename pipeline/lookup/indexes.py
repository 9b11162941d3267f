"""Which run's index a search is about, and the retriever over it. Shared by `search.py`, `serve.py` and the API."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.store import Artifact, Store, open_store
from pipeline.config.load import read_config
from pipeline.config.sections import Config
from pipeline.config.values import get_value
from pipeline.lookup.students import find_student, index_student
from pipeline.planning.baselines import read_baselines
from pipeline.planning.plan import LOCATIONS
from stages.contract.context import InputError
from stages.model.identity import identify

if TYPE_CHECKING:
    from stages.search.retriever import Retriever

ENDPOINT = "store_endpoint"


def find_index(overrides: Sequence[str]) -> tuple[Store, dict[str, str], str]:
    """The store, {stage: key} of the newest run that agrees with the overrides, and the directory of its student.

    The directory is empty where the overrides name no student. Raises InputError, one line, where there is no run.
    """
    place, wanted = read_overrides(overrides)
    store = open_store(place, wanted.get(ENDPOINT, ""))
    return store, find_keys(store, place, wanted), wanted.get("student.model", "")


def read_overrides(overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The store's place, and {dotted key: value} that a run's configuration has to agree with."""
    config, settings = read_config("demo", overrides)
    set_here = [path for path, origin in settings.origins.items() if origin.startswith("override ")]
    wanted = {
        path: get_value(settings.values, path.split(".")) for path in set_here if path not in ("store", "tracking_uri")
    }
    if wanted.get("student.model"):
        found = find_student(wanted["student.model"], config.tracking_uri, config.store_endpoint)
        wanted["student.model"] = str(found)
    return config.store, wanted


def find_keys(store: Store, place: str, wanted: Mapping[str, Any]) -> dict[str, str]:
    """{stage: key} of the newest run that agrees with `wanted` and whose index is committed."""
    committed = store.manifests()["index"]
    chosen = {name: value for name, value in wanted.items() if name != ENDPOINT}
    compared = {name: value for name, value in chosen.items() if name != "student.model" or not value}
    for run in sorted(store.runs(), key=lambda run: bool(run.get("grid"))):  # cells of a grid come last
        keys = {name: stage["key"] for name, stage in run["stages"].items()}
        if keys.get("index") in committed and agrees(run["config"], compared) and made_by(store, keys, wanted):
            return keys
    overrides = [f"{name}={value}" for name, value in chosen.items()]
    purpose = f" for {' '.join(overrides)}" if overrides else ""
    overrides += [f"store={place}"] if place != Config().store else []
    overrides += [f"{ENDPOINT}={wanted[ENDPOINT]}"] if wanted.get(ENDPOINT) else []
    overrides += ["student=STUDENT"] if wanted.get("index.corpus") and not wanted.get("student.model") else []
    command = shlex.join(["python", "pipeline/run.py", *overrides])
    raise InputError(f"no index in {place}{purpose}: run `{command}` first")


def agrees(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a run's configuration has every wanted value; from before a setting it has the setting's first value."""
    return all(is_same(path, recorded(config, path), value) for path, value in wanted.items())


def is_same(path: str, found: Any, wanted: Any) -> bool:
    """Whether two values of the setting `path` mean the same; a place may be spelled in several ways."""
    if path in LOCATIONS and found and wanted:
        return resolved(found) == resolved(wanted)
    return bool(found == wanted)


def resolved(place: str) -> str:
    """One spelling for all of a place: `photos/`, `./photos` and its absolute path are one."""
    return place.rstrip("/") if "://" in place else str(Path(place).expanduser().resolve())


def recorded(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a run's configuration."""
    try:
        return get_value(config, path.split("."))
    except KeyError:
        return read_baselines().get(path)


def made_by(store: Store, keys: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Whether the wanted student made the index of a corpus: known by its weights, wherever they lie today."""
    if not wanted.get("student.model"):
        return True
    card = store.artifact("index", keys["index"]).read_json("retriever.json")
    return card.get("student", {}).get("identity") == identify(Path(wanted["student.model"]))


def open_retriever(store: Store, key: str, backend: str = "", student: str = "") -> "Retriever":
    """The retriever over the index `key`; `student` is the directory that a moved student of your own corpus is in."""
    from stages.search.backends import read_card
    from stages.search.retriever import Retriever

    index = store.artifact("index", key)
    card = read_card(index)
    found = index_student(store, card, student)
    return Retriever.load(index, *index_inputs(store, card), backend=backend, student=found)


def index_inputs(store: Store, card: Mapping[str, Any]) -> tuple[Artifact | None, Artifact | None]:
    """`ingest` and `train` that an index was made from, by its card; one of your own corpus has neither."""
    keys = [(stage, card[stage]["key"]) if stage in card else None for stage in ("ingest", "train")]
    ingest, train = (store.artifact(*key) if key else None for key in keys)
    return ingest, train
