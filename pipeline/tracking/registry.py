"""The registered student in MLflow: a version by reference, and the rule by which it becomes the champion.

`models:/NAME@champion` is what people load, so a new student takes the alias only where the numbers say that it may:
measured on the same test data (ingested data, split, queries asked) and at least as good there by mean hit@5 in local
pools. Numbers of other test data do not compare; then the champion stays, and `train.register_alias=always` moves it.
A student that is not the champion gets the alias `challenger`.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
MEASURE = "local/hit_at_5"


def register_student(
    client: "MlflowClient",
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    run_id: str | None,
    alias: str = "auto",
) -> str:
    """Registers a student that is new and gives it its alias; returns one line for the user.

    Args:
        tags: `key`, `attempt`, `weights` (the directory in the store) and `test` (the identity of the test data).
        metrics: the student's numbers, flat; they become tags of the version.
        run_id: the run that trained it; None where this MLflow has no such run.
        alias: `auto` follows the rule above, `always` makes it champion, `never` leaves all aliases alone.

    A champion that is measured on other test data keeps its numbers, unless `alias` is `always`: else it would have to
    be beaten on whatever it was last evaluated on.
    """
    if not any(model.name == name for model in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(
            name, description="Students: stock checkpoints, the tag `weights` says where they lie."
        )
    known = same_student(client, name, tags)
    if known and alias != "always" and is_champion(client, name, known):
        measured = client.get_model_version(name, known).tags.get("test")
        if measured != tags["test"]:
            stays = f"what it found in {measured} stays, and in {tags['test']} is not compared"
            return f"registered before: {name} version {known}; {stays} (train.register_alias=always)"
    version = known or create_version(client, experiment_id, name, tags, run_id)
    facts = {**tags, **{measure: f"{value:.6g}" for measure, value in metrics.items()}}
    for tag, value in facts.items():
        client.set_model_version_tag(name, version, tag, value)
    if alias == "never":
        return f"registered: {name} version {version}; aliases stay (train.register_alias=never)"
    return f"registered: {set_alias(client, name, version, facts, alias == 'always')}"


def is_champion(client: "MlflowClient", name: str, version: str) -> bool:
    """Whether the alias is on this version."""
    return str(client.get_registered_model(name).aliases.get(CHAMPION)) == str(version)


def set_alias(client: "MlflowClient", name: str, version: str, facts: Mapping[str, str], always: bool) -> str:
    """Makes the version champion where the rule or `always` allows it, else challenger; says which."""
    aliases = client.get_registered_model(name).aliases
    champion = client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None
    if champion and str(champion.version) != str(version) and not always and (reason := why_not(champion, facts)):
        client.set_registered_model_alias(name, CHALLENGER, version)
        return f"{name} version {version} as {CHALLENGER}; champion stays version {champion.version}: {reason}"
    client.set_registered_model_alias(name, CHAMPION, version)
    if str(aliases.get(CHALLENGER)) == str(version):
        client.delete_registered_model_alias(name, CHALLENGER)
    return f"models:/{name}@{CHAMPION} is version {version}"


def why_not(champion: "ModelVersion", ours: Mapping[str, str]) -> str | None:
    """Why the champion stays; None where the new version may take its place."""
    theirs = champion.tags
    if theirs.get("test") != ours.get("test"):
        return "it was measured on other test data; train.register_alias=always moves it"
    if MEASURE not in ours or MEASURE not in theirs:
        return "one of them has no mean hit@5; train.register_alias=always moves it"
    if float(ours[MEASURE]) < float(theirs[MEASURE]):
        return f"mean local hit@5 {float(theirs[MEASURE]):.3f} against {float(ours[MEASURE]):.3f}"
    return None


def create_version(
    client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str], run_id: str | None
) -> str:
    """A logged model of MLflow's pyfunc flavour that refers to the weights, and a version of `name` for it."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.tracking import set_tracking_uri

    from stages.export.mlflow_model import save_reference

    model = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags=dict(tags))
    with tempfile.TemporaryDirectory() as directory:
        save_reference(Path(directory, "model"), tags["weights"])
        client.log_model_artifacts(model.model_id, str(Path(directory, "model")))
    client.finalize_logged_model(model.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    # A server refuses paths of its own machine as a source, so the source is the model's record; to look it up,
    # MLflow asks the global address instead of the client's.
    set_tracking_uri(client.tracking_uri)
    source = f"models:/{model.model_id}"
    return client.create_model_version(name, source, run_id, tags=dict(tags), model_id=model.model_id).version


def same_student(client: "MlflowClient", name: str, tags: Mapping[str, str]) -> str | None:
    """The version that was registered for the same attempt at the same key."""
    for version in client.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(part) == tags[part] for part in ("key", "attempt")):
            return version.version
    return None
