"""Plans on dictionaries: a store as it would be after earlier decisions, and what a configuration comes to there."""

import copy
from typing import Any

from pipeline.config.sections import Config
from pipeline.planning.dag import STAGES, stages_of
from pipeline.planning.plan import Selection, Source, plan

SOURCES = {stage.name: Source(1, {f"{stage.module}.py": "aaaa"}) for stage in STAGES}
TRAIN_AND_BELOW = {"train", "index", "evaluate"}


def commit(decisions, manifests=None, attempt="first", only=None) -> dict[str, dict[str, Any]]:
    """Manifests as they would lie in the store after the decisions were carried out."""
    manifests = copy.deepcopy(manifests or {})
    for decision in decisions:
        if decision.action != "run" or (only and decision.stage not in only):
            continue
        inputs = {
            name: {"key": key, "attempt": manifests[name][key]["attempt"]}
            for name, key in decision.parts["inputs"].items()
        }
        manifest = {"parts": decision.parts, "inputs": inputs, "attempt": attempt, "created": attempt}
        manifests.setdefault(decision.stage, {})[decision.key] = manifest
    return manifests


def decide(config=None, manifests=None, sources=None, **selection) -> dict[str, Any]:
    config = config or Config()
    decisions = plan(stages_of(config), config, manifests or {}, sources or SOURCES, Selection(**selection))
    return {decision.stage: decision for decision in decisions}


def default_store() -> dict[str, dict[str, Any]]:
    return commit(decide().values())


def config_with(path: str, value: Any) -> Config:
    values: dict[str, Any] = {}
    place = values
    *sections, last = path.split(".")
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return Config.model_validate(values)


def actions(decisions) -> dict[str, str]:
    return {name: decision.action for name, decision in decisions.items()}


def running(decisions) -> set[str]:
    return {name for name, action in actions(decisions).items() if action == "run"}
