"""What a run will do and why, worked out before anything runs: pure, so that it can be tested with dictionaries.

A stage's key is a hash of named parts: the stage's VERSION, the CODE of its modules, its PARAMS that can change the
result and have another value than when they were introduced (`baselines`), its INPUTs by key, and a fingerprint of
DATA from outside. Inputs by key instead of by content: the whole plan is known at once and a GPU's rounding can't
ripple through it. The price: a stage that runs again and writes the same bytes still makes its descendants run.

Example: `train.loss=infonce` after a complete default run.

    ingest ─► … ─► distill ─► train ─► index ─► evaluate
    cached         cached     run      run      run
                              │        └ INPUT train
                              └ PARAMS train.loss mac → infonce

A key says what an artifact should hold; an attempt says who wrote it. `--force train` keeps the key of `train` and
writes a new attempt, and artifacts that were made from the older attempt are not cached any more: `INPUT train
(rewritten)`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.values import walk_values
from pipeline.planning.closure import ROOT
from pipeline.planning.dag import PRECISION, Stage, descendants, keyed_section
from pipeline.wording import nearest
from stages.contract.context import InputError
from stages.contract.params import Section

LOCATIONS = ("data.path", "distill.data.path", "features.teacher", "index.corpus", "student.model")
"""Where outside data lies that a stage copies. Left out of a key with its fingerprint: moved data is the same data."""

Manifests = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""stage → key → manifest of every committed artifact."""


@dataclass(frozen=True)
class Source:
    """What a stage is made of besides parameters and inputs.

    Attributes:
        version: the stage's own.
        code: {path: hash}.
        data: the fingerprint of what it reads from outside the store.
        baselines: {dotted path: first value} of settings; one without an entry counts with its present default.
        root: where the code lies.
    """

    version: int
    code: Mapping[str, str]
    data: Any = None
    baselines: Mapping[str, Any] = field(default_factory=dict)
    root: Path = ROOT


@dataclass(frozen=True)
class Selection:
    """Which stages the user wants; empty means all, `command` is the command line without these options."""

    only: str = ""
    start: str = ""
    until: str = ""
    force: tuple[str, ...] = ()
    ignore_code: bool = False
    command: str = "python pipeline/run.py"


@dataclass(frozen=True)
class Decision:
    """What becomes of one stage: `cached`, `run`, or `skipped` where it was not selected and isn't up to date.

    `root` is where the code lies that `parts` tell.
    """

    stage: str
    key: str
    action: str
    reasons: tuple[str, ...]
    parts: Mapping[str, Any] = field(repr=False)
    forced: bool = False
    root: Path = ROOT


def plan(
    stages: tuple[Stage, ...],
    config: Section,
    manifests: Manifests,
    sources: Mapping[str, Source],
    selection: Selection = Selection(),
    started: Callable[[str, str], bool] = lambda stage, key: False,
) -> list[Decision]:
    """One decision for each stage, in running order. `started(stage, key)` tells whether a run began it before.

    Raises InputError for an unknown stage, options that exclude each other, and `--only` with missing inputs.
    """
    selected, forced = select(stages, selection)
    defaults = {path: value for path, value, _ in walk_values(type(config)())}
    decisions: dict[str, Decision] = {}
    for stage in stages:
        inputs = {name: decisions[name].key for name in stage.inputs}
        baselines = {**defaults, **sources[stage.name].baselines, PRECISION: "fp32"}
        own = key_parts(stage, config, baselines, sources[stage.name], inputs)
        known = with_known_code(own, manifests.get(stage.name, {})) if selection.ignore_code else own
        for parts in (known, own):  # what is not cached runs with the code as it is, so its key tells that code
            key = key_of(parts)
            reasons = run_reasons(stage, key, parts, manifests, decisions, stage.name in forced, baselines)
            if parts == own or not reasons:
                break
        root = sources[stage.name].root
        if stage.name in selected:
            if reasons and stage.name not in forced and key not in manifests.get(stage.name, {}):
                reasons = with_incomplete(reasons, started(stage.name, key))
            action, is_forced = "run" if reasons else "cached", stage.name in forced
            decision = Decision(stage.name, key, action, reasons, parts, is_forced, root)
        else:
            decision = Decision(
                stage.name, key, "skipped" if reasons else "cached", ("not selected",), parts, root=root
            )
        decisions[stage.name] = decision
    if selection.only:
        require_inputs(stages, decisions, selection)
    return list(decisions.values())


def select(stages: tuple[Stage, ...], selection: Selection) -> tuple[set[str], set[str]]:
    """(stages to bring up to date, stages to run even if they are)."""
    names = [stage.name for stage in stages]
    for name in filter(None, (selection.only, selection.start, selection.until, *selection.force)):
        if name not in names:
            raise InputError(f"there is no stage '{name}'{nearest(name, names)}; the stages: {', '.join(names)}")
    if selection.only and (selection.start or selection.until):
        raise InputError("--only excludes --from and --until; give either the one stage or the range")
    selected = {selection.only} if selection.only else set(names)
    if selection.until:
        selected = set(names[: names.index(selection.until) + 1])
    forced = set(selection.force)
    if selection.start:
        forced |= {selection.start} | (descendants(stages, selection.start) & selected)
    if beyond := [name for name in names if name in forced - selected]:
        raise InputError(f"stage '{beyond[0]}' is to be forced but not selected; widen --only or --until")
    return selected, forced


def key_parts(
    stage: Stage, config: Any, baselines: Mapping[str, Any], source: Source, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """The named parts of a stage's key. Parameters at their first value are left out: a new one keeps old artifacts.

    How machines are used is no part of it, but for what changes a model's numbers (`Stage.machines`).
    """
    values = {path: value for path, value, is_knob in walk_values(config) if not is_knob}
    reads = stage.reads(config)
    others = {*stage.machines(config), *reads}
    if PRECISION in others:
        values[PRECISION] = config.cluster.chosen_precision()
    params = {
        path: value
        for path, value in (values | dict(reads)).items()
        if (keyed_section(path) in stage.sections or path in others)
        and value != baselines.get(path)
        and not (source.data and path in LOCATIONS)
    }
    return {
        "stage": stage.name,
        "version": source.version,
        "code": dict(source.code),
        "params": params,
        "inputs": dict(inputs),
        "data": source.data,
    }


def with_known_code(parts: dict[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The parts with the code of the newest artifact that differs in nothing else; as they are where there is none."""
    for manifest in newest_first(known):
        if {**manifest["parts"], "code": parts["code"]} == parts:
            return {**parts, "code": manifest["parts"]["code"]}
    return parts


def with_incomplete(reasons: tuple[str, ...], begun: bool) -> tuple[str, ...]:
    """The reasons, and INCOMPLETE where an earlier run left the stage halfway: this one goes on from there."""
    if not begun:
        return reasons
    return (*(reason for reason in reasons if reason != "MISSING"), "INCOMPLETE")


def key_of(parts: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_reasons(
    stage: Stage,
    key: str,
    parts: Mapping[str, Any],
    manifests: Manifests,
    decisions: Mapping[str, Decision],
    forced: bool,
    baselines: Mapping[str, Any],
) -> tuple[str, ...]:
    """Why the stage has to run; nothing when its artifact is there and was made from the inputs that are there."""
    if forced:
        return ("FORCED",)
    known = manifests.get(stage.name, {})
    if key not in known:
        earlier = [differences(parts, manifest["parts"], baselines) for manifest in newest_first(known)]
        return min(earlier, key=len, default=("MISSING",)) or ("MISSING",)

    def attempt_of(name: str) -> str | None:
        return manifests.get(name, {}).get(decisions[name].key, {}).get("attempt")

    reasons = []
    for name in stage.inputs:
        # What runs anyway is not looked at: `--force` mends a manifest that can't be read.
        if decisions[name].action == "run" or attempt_of(name) != known[key]["inputs"].get(name, {}).get("attempt"):
            reasons.append(f"INPUT {name} (rewritten)")
    return tuple(reasons)


def newest_first(known: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A stage's manifests, the last written first."""
    return sorted(known.values(), key=lambda manifest: manifest.get("created", ""), reverse=True)


def differences(new: Mapping[str, Any], old: Mapping[str, Any], baselines: Mapping[str, Any]) -> tuple[str, ...]:
    """What changed from the parts of an earlier artifact, one reason for each cause."""
    reasons = []
    if new["version"] != old["version"]:
        reasons.append(f"VERSION {old['version']} → {new['version']}")
    reasons += [f"CODE {path}" for path in changed(new["code"], old["code"])]
    for path in changed(new["params"], old["params"]):
        before, after = (parts["params"].get(path, baselines.get(path)) for parts in (old, new))
        reasons.append(f"PARAMS {path} {spell(before)} → {spell(after)}")
    reasons += [f"INPUT {name}" for name in changed(new["inputs"], old["inputs"])]
    if new["data"] != old["data"]:
        reasons.append("DATA")
    return tuple(reasons)


def changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that only one side has."""
    return sorted(name for name in {*new, *old} if new.get(name) != old.get(name))


def spell(value: Any) -> str:
    """A parameter's value as the user would write it."""
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, ensure_ascii=False)


def require_inputs(stages: tuple[Stage, ...], decisions: Mapping[str, Decision], selection: Selection) -> None:
    """`--only S` reads what is there; what isn't has to be made first."""
    stage = next(stage for stage in stages if stage.name == selection.only)
    missing = [name for name in stage.inputs if decisions[name].action == "skipped"]
    if missing:
        raise InputError(
            f"--only {stage.name} needs {', '.join(missing)}, not in the store or not up to date;"
            f" make it with: {selection.command} --until {missing[-1]}"
        )
