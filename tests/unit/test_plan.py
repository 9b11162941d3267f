"""The planner: actions and reasons, on dictionaries."""

import pytest

from pipeline.config.sections import Config
from pipeline.planning.dag import STAGES, descendants
from pipeline.planning.plan import Source, plan
from stages.contract.context import InputError, StageError
from tests.planning_world import SOURCES, TRAIN_AND_BELOW, actions, commit, config_with, decide, default_store, running


def test_an_empty_store_runs_everything_as_missing():
    decisions = decide()
    assert all(decision.action == "run" and decision.reasons == ("MISSING",) for decision in decisions.values())


def test_a_complete_store_is_cached_without_reasons():
    decisions = decide(manifests=default_store())
    assert all(decision.action == "cached" and decision.reasons == () for decision in decisions.values())


def test_a_changed_loss_runs_train_and_what_follows_and_says_why():
    decisions = decide(config_with("train.loss", "infonce"), default_store())
    assert running(decisions) == TRAIN_AND_BELOW
    assert decisions["train"].reasons == (f"PARAMS train.loss {Config().train.loss} → infonce",)
    assert decisions["index"].reasons == ("INPUT train",)
    assert decisions["evaluate"].reasons == ("INPUT index", "INPUT train")


def test_going_back_to_earlier_parameters_finds_their_artifacts():
    manifests = commit(decide(config_with("train.loss", "infonce"), default_store()).values(), default_store())
    assert running(decide(manifests=manifests)) == set()


def test_reasons_compare_with_the_nearest_earlier_artifact():
    store = default_store()
    both = Config.model_validate({"train": {"loss": "infonce", "steps": 7}})
    store = commit(decide(both, store).values(), store, attempt="second")
    decisions = decide(Config.model_validate({"train": {"loss": "infonce", "steps": 8}}), store)
    assert decisions["train"].reasons == ("PARAMS train.steps 7 → 8",)


def test_a_parameter_back_at_its_default_is_spelled_with_the_default():
    store = commit(decide(config_with("train.steps", 7)).values())
    assert decide(manifests=store)["train"].reasons == (f"PARAMS train.steps 7 → {Config().train.steps}",)


def test_changed_code_names_the_file():
    sources = SOURCES | {"index": Source(1, {"stages.index.py": "bbbb", "stages/search/exact.py": "cccc"})}
    decisions = decide(manifests=default_store(), sources=sources)
    assert running(decisions) == {"index", "evaluate"}
    assert decisions["index"].reasons == ("CODE stages.index.py", "CODE stages/search/exact.py")


def test_other_code_can_be_ignored_and_nothing_else():
    sources = SOURCES | {"train": Source(1, {"stages/train.py": "cccc"})}
    store = default_store()
    assert running(decide(manifests=store, sources=sources)) == TRAIN_AND_BELOW
    decisions = decide(manifests=store, sources=sources, ignore_code=True)
    assert running(decisions) == set() and decisions["train"].key in store["train"]
    changed = decide(config_with("train.steps", 7), store, sources, ignore_code=True)
    assert running(changed) == TRAIN_AND_BELOW
    assert f"PARAMS train.steps {Config().train.steps} → 7" in changed["train"].reasons


def test_what_runs_although_other_code_is_ignored_is_stored_as_what_the_new_code_made():
    sources = SOURCES | {"train": Source(1, {"stages/train.py": "cccc"})}
    store, new = default_store(), decide(sources=sources)["train"]
    forced = decide(manifests=store, sources=sources, ignore_code=True, force=("train",))["train"]
    assert forced.key == new.key not in store["train"] and forced.parts["code"] == {"stages/train.py": "cccc"}
    store = commit(decide(manifests=store, force=("distill",), until="distill").values(), store, attempt="second")
    rewritten = decide(manifests=store, sources=sources, ignore_code=True)
    assert rewritten["train"].key == new.key and rewritten["train"].action == "run"
    assert rewritten["index"].parts["inputs"]["train"] == new.key


class Damaged(dict):
    """Manifests of which some can't be read."""

    def __getitem__(self, key):
        if super().__getitem__(key) is None:
            raise StageError("damaged")
        return super().__getitem__(key)

    def get(self, key, default=None):
        try:
            return self[key]
        except KeyError:
            return default

    def values(self):
        return [value for value in super().values() if value]


@pytest.mark.parametrize("stage", ["ingest", "distill"])
def test_force_repairs_a_manifest_that_cannot_be_read(stage):
    store = {name: Damaged(known) for name, known in default_store().items()}
    store[stage][decide()[stage].key] = None
    with pytest.raises(StageError, match="damaged"):
        decide(manifests=store)
    decisions = decide(manifests=store, force=(stage,))
    assert running(decisions) == {stage} | descendants(STAGES, stage)


def test_a_stage_that_was_left_halfway_is_reported_with_what_made_it_run():
    def reasons(config: Config, manifests: dict, begun: str) -> dict[str, tuple[str, ...]]:
        decisions = plan(STAGES, config, manifests, SOURCES, started=lambda stage, key: stage == begun)
        return {decision.stage: decision.reasons for decision in decisions}

    assert reasons(Config(), {}, "ingest") == {stage.name: ("MISSING",) for stage in STAGES} | {
        "ingest": ("INCOMPLETE",)
    }
    changed = reasons(config_with("train.steps", 7), default_store(), "train")
    assert changed["train"] == (f"PARAMS train.steps {Config().train.steps} → 7", "INCOMPLETE")


def test_a_new_version_is_a_reason():
    sources = SOURCES | {"evaluate": Source(2, SOURCES["evaluate"].code)}
    assert decide(manifests=default_store(), sources=sources)["evaluate"].reasons == ("VERSION 1 → 2",)


def test_changed_outside_data_is_a_reason_and_its_place_is_not():
    config = config_with("data.path", "/here")
    sources = SOURCES | {"ingest": Source(1, SOURCES["ingest"].code, "digest")}
    store = commit(decide(config, sources=sources).values())
    assert running(decide(config_with("data.path", "/there"), store, sources)) == set()
    sources = SOURCES | {"ingest": Source(1, SOURCES["ingest"].code, "other")}
    decisions = decide(config, store, sources)
    assert decisions["ingest"].reasons == ("DATA",)
    assert len(running(decisions)) == len(STAGES)


def test_force_runs_the_stage_and_what_was_made_from_it():
    decisions = decide(manifests=default_store(), force=("train",))
    assert running(decisions) == TRAIN_AND_BELOW
    assert decisions["train"].reasons == ("FORCED",) and decisions["train"].forced
    assert decisions["index"].reasons == ("INPUT train (rewritten)",) and not decisions["index"].forced
    assert decisions["train"].key in default_store()["train"]


def test_what_was_made_from_a_rewritten_artifact_is_not_cached_later_either():
    store = default_store()
    store = commit(decide(manifests=store, force=("train",), until="train").values(), store, attempt="second")
    decisions = decide(manifests=store)
    assert running(decisions) == {"index", "evaluate"}
    assert decisions["index"].reasons == ("INPUT train (rewritten)",)


def test_after_a_forced_run_everything_is_cached_again():
    store = default_store()
    store = commit(decide(manifests=store, force=("distill",)).values(), store, attempt="second")
    assert running(decide(manifests=store)) == set()


def test_from_forces_the_stage_and_its_descendants_only():
    decisions = decide(manifests=default_store(), start="features")
    forced = {name for name, decision in decisions.items() if decision.reasons == ("FORCED",)}
    assert forced == {"features", "distill"} | TRAIN_AND_BELOW
    assert running(decisions) == forced


def test_from_with_until_stops_in_between():
    assert running(decide(manifests=default_store(), start="features", until="distill")) == {"features", "distill"}


def test_until_leaves_the_rest_unselected():
    decisions = decide(until="features")
    assert running(decisions) == {"ingest", "backbone", "features"}
    assert decisions["distill"].action == "skipped" and decisions["distill"].reasons == ("not selected",)


def test_only_runs_one_stage_on_committed_inputs():
    store = default_store()
    del store["index"], store["evaluate"]
    decisions = decide(manifests=store, only="index")
    assert running(decisions) == {"index"}
    assert actions(decisions)["evaluate"] == "skipped"


def test_only_with_missing_inputs_names_them_and_the_command():
    with pytest.raises(InputError, match=r"--only index needs ingest, train, .*: go --until train$"):
        decide(only="index", command="go")


def test_only_refuses_inputs_that_are_out_of_date():
    store = default_store()
    store = commit(decide(manifests=store, force=("train",), until="train").values(), store, attempt="second")
    with pytest.raises(InputError, match="needs index, not in the store or not up to date"):
        decide(manifests=store, only="evaluate")


def test_a_lost_artifact_is_made_again_with_what_follows():
    store = default_store()
    store["distill"].clear()
    decisions = decide(manifests=store)
    assert running(decisions) == {"distill"} | TRAIN_AND_BELOW
    assert decisions["distill"].reasons == ("MISSING",)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"only": "evalute"}, "no stage 'evalute'; did you mean 'evaluate'"),
        ({"force": ("x",)}, "the stages: ingest, backbone"),
        ({"only": "train", "until": "index"}, "--only excludes"),
        ({"until": "features", "force": ("train",)}, "'train' is to be forced but not selected"),
        ({"until": "features", "start": "train"}, "'train' is to be forced but not selected"),
    ],
)
def test_impossible_selections_are_refused(selection, message):
    with pytest.raises(InputError, match=message):
        decide(manifests=default_store(), **selection)


def test_descendants_follow_the_graph():
    assert descendants(STAGES, "train") == {"index", "evaluate"}
    assert descendants(STAGES, "evaluate") == set()
    assert descendants(STAGES, "ingest") == {stage.name for stage in STAGES} - {"ingest"}


def test_stages_stand_in_running_order_and_their_sections_exist():
    done: set[str] = set()
    for stage in STAGES:
        assert set(stage.inputs) <= done
        assert set(stage.sections) <= set(Config.model_fields)
        assert isinstance(stage.load().VERSION, int)
        done.add(stage.name)
