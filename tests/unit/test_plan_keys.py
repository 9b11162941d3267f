"""What is in the key of a stage and what is not, on dictionaries."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.sections import Config
from pipeline.config.values import walk_values
from pipeline.planning.dag import DRAWS, STAGES, WITH_OWN_DATA, Stage, descendants, draws, keyed_section, stages_of
from pipeline.planning.plan import Decision, Source, plan
from stages.contract.params import Section, knob
from tests.planning_world import SOURCES, TRAIN_AND_BELOW, commit, config_with, decide, default_store, running

# Properties over every value of the real configuration.

VALUES = {path: (value, is_knob) for path, value, is_knob in walk_values(Config())}
NUMBERS = [path for path in VALUES if type(VALUES[path][0]) in (int, float) and not path.startswith("cluster.")]


def moved(path: str, by: int) -> Config:
    """The configuration with one number moved off its default (inside or outside its range, which isn't the point)."""
    return replace(Config(), path, VALUES[path][0] + by)


def replace(section: Section, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    inner = replace(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


@given(path=st.sampled_from([path for path in NUMBERS if VALUES[path][1]]), by=st.integers(1, 9))
def test_a_knob_never_changes_a_key(path, by):
    assert running(decide(moved(path, by), default_store())) == set()


@given(path=st.sampled_from([path for path in NUMBERS if not VALUES[path][1]]), by=st.integers(1, 9))
def test_a_parameter_changes_exactly_the_keys_of_its_stages_and_below(path, by):
    changed = moved(path, by)
    before, after = decide(), decide(changed)
    direct = {stage.name for stage in STAGES if keyed_section(path) in stage.sections}
    direct |= {stage.name for stage in STAGES if stage.reads(Config()) != stage.reads(changed)}
    expected = direct.union(*(descendants(STAGES, name) for name in direct))
    assert {name for name in before if before[name].key != after[name].key} == expected


OWN = {"kind": "corpus", "path": "/texts"}
OWN_SOURCES = {stage.name: Source(1, {f"{stage.module}.py": "aaaa"}) for stage in WITH_OWN_DATA}


def decide_own(distill: dict[str, Any], manifests=None, sources=OWN_SOURCES, **sections) -> dict[str, Any]:
    """The plan where distillation has data of its own."""
    config = Config.model_validate({"distill": {"data": OWN} | distill, **sections})
    return {one.stage: one for one in plan(stages_of(config), config, manifests or {}, sources)}


def test_data_of_distillation_s_own_is_a_stage_that_the_teacher_and_the_student_read():
    before, decisions = decide(), decide_own({})
    assert list(decisions)[:2] == ["ingest", "distill.data"] and len(decisions) == len(STAGES) + 1
    assert {name: one.key for name, one in decisions.items() if one.key == before.get(name, one).key} == {
        name: decisions[name].key for name in ("ingest", "distill.data", "backbone")
    }
    reads = {stage.name for stage in WITH_OWN_DATA if "distill.data" in stage.inputs}
    assert reads == {"features", "distill"} and stages_of(Config()) == STAGES
    assert decisions["distill.data"].parts["params"] == {"distill.data.kind": "corpus", "distill.data.path": "/texts"}
    assert not any(path.startswith("distill.data.") for path in decisions["distill"].parts["params"])


def test_moved_data_of_distillation_is_the_same_data_and_two_runs_share_it():
    sources = OWN_SOURCES | {"distill.data": Source(1, {"stages/ingest.py": "aaaa"}, "digest")}
    store = commit(decide_own({}, sources=sources).values())
    moved_there = decide_own({"data": OWN | {"path": "/there"}}, store, sources)
    assert {one.action for one in moved_there.values()} == {"cached"}
    other = decide_own({"learning_rate": 0.5}, store, sources, data={"max_pixels": 4096})
    assert other["distill.data"].action == "cached" and other["ingest"].action == "run"
    changed = decide_own({"data": OWN | {"max_pixels": 4096}}, store, sources)
    assert changed["distill.data"].reasons == ("PARAMS distill.data.max_pixels 1048576 → 4096",)
    assert changed["ingest"].action == changed["backbone"].action == "cached"
    assert changed["features"].reasons == ("INPUT distill.data",)


@pytest.mark.parametrize(
    ("distill", "reasons"),
    [
        ({"steps": 310}, ()),
        ({"steps": 330}, ("PARAMS distill.draws 20000 → 22000",)),
        ({"batch_size": 32}, ("PARAMS distill.draws 20000 → 9600",)),
        ({"steps": 150, "batch_size": 128}, ()),
        ({"smallest_task": 8}, ("PARAMS distill.smallest_task 0 → 8",)),
        ({"seed": 3, "sub_batch": 8, "learning_rate": 0.5}, ()),
        ({"feature_weight": 0}, ("PARAMS distill.draws 20000 → 0",)),
        ({"teacher": "live"}, ("PARAMS distill.draws 20000 → 0",)),
    ],
)
def test_the_teacher_reads_again_where_distillation_comes_to_other_rows_and_only_there(distill, reasons):
    config = Config.model_validate({"distill": distill})
    assert decide(config, default_store())["features"].reasons == reasons


@pytest.mark.parametrize(
    ("features", "expected"),
    [({}, 0), ({"centre": True}, 20_000), ({"layer": "auto"}, 20_000), ({"layer": "auto", "centre": False}, 0)],
)
def test_for_a_live_teacher_rows_are_read_only_where_their_mean_is_taken_off(features, expected):
    config = Config.model_validate({"distill": {"teacher": "live"}, "features": features})
    assert draws(config)[DRAWS] == expected


def test_how_machines_are_used_is_in_no_key():
    cluster = {"workers": 2, "actors": 3, "precision": "fp32", "zero_stage": 2, "gpus_per_worker": 1}
    assert running(decide(Config.model_validate({"cluster": cluster}), default_store())) == set()


WITH_MODELS = {"backbone", "features", "distill"} | TRAIN_AND_BELOW


@pytest.mark.parametrize("cluster", [{"precision": "bf16"}, {"gpus_per_worker": 1}])
def test_bf16_is_in_the_key_of_every_stage_that_computes_with_a_model(cluster):
    decisions = decide(Config.model_validate({"cluster": cluster}), default_store())
    assert running(decisions) == WITH_MODELS
    assert decisions["backbone"].reasons == ("PARAMS cluster.precision fp32 → bf16",)
    store = commit(decisions.values(), default_store(), attempt="second")
    assert running(decide(manifests=store)) == set()  # fp32 finds its own again
    assert decide(Config.model_validate({"cluster": cluster}), store)["index"].action == "cached"


def test_the_rows_of_a_shard_are_in_the_key_of_every_stage_that_embeds():
    decisions = decide(Config.model_validate({"cluster": {"rows_per_shard": 7}}), default_store())
    assert {name for name in decisions if "PARAMS cluster.rows_per_shard 2048 → 7" in decisions[name].reasons} == {
        "features",
        "index",
        "evaluate",
    }
    mined = {"cluster": {"rows_per_shard": 7}, "train": {"mine": {"per_query": 2}}}
    assert decide(Config.model_validate(mined), {})["train"].parts["params"]["cluster.rows_per_shard"] == 7
    knobs = {"batch_size": 2, "log_every": 3, "checkpoint_every": 4}
    assert running(decide(Config.model_validate({"cluster": knobs}), default_store())) == set()


def test_a_backbone_from_outside_is_the_same_in_every_precision():
    hub = {"backbone": {"source": "hub", "model": "a/b", "revision": "c"}}
    store = commit(decide(Config.model_validate(hub)).values())
    decisions = decide(Config.model_validate(hub | {"cluster": {"precision": "bf16"}}), store)
    assert running(decisions) == WITH_MODELS - {"backbone"}


def test_a_tuned_backbone_from_outside_is_another_in_another_precision():
    hub = {"backbone": {"source": "hub", "model": "a/b", "revision": "c", "tune": {"steps": 3}}}
    store = commit(decide(Config.model_validate(hub)).values())
    decisions = decide(Config.model_validate(hub | {"cluster": {"precision": "bf16"}}), store)
    assert decisions["backbone"].reasons == ("PARAMS cluster.precision fp32 → bf16",)


def test_train_reads_the_teacher_s_states_only_where_they_weigh_anything():
    def train(**given: Any) -> Decision:
        config = Config.model_validate({"train": given})
        return {one.stage: one for one in plan(stages_of(config), config, {}, SOURCES)}["train"]

    assert stages_of(Config()) == STAGES
    assert set(train().parts["inputs"]) == set(train(feature_weight=0.3, steps=0).parts["inputs"])
    assert set(train(feature_weight=0.3).parts["inputs"]) == {"ingest", "distill", "features"}
    assert "train" in descendants(stages_of(Config.model_validate({"train": {"feature_weight": 1}})), "features")
    # What a weight of 0 does not read is in no key, as before there was a weight.
    assert train().parts["params"] == {} and "features" not in train().parts["inputs"]


def test_the_teacher_reads_more_for_a_last_training_that_it_teaches_and_knows_nothing_else_of_it():
    def features(**train: Any) -> Decision:
        return decide(Config.model_validate({"train": train}), default_store())["features"]

    assert features(feature_weight=0.3).reasons == ("PARAMS train.taught false → true",)
    assert features(feature_weight=0.3).key == features(feature_weight=0.5, steps=7).key
    assert features(feature_weight=0.3, steps=0).action == features(steps=7).action == "cached"


def test_a_new_parameter_at_its_default_keeps_the_keys():
    class Before(Section):
        size: int = 1

    class After(Section):
        size: int = 1
        shape: str = "round"
        speed: int = knob(3)

    def keys(params: type[Section], **values: Any) -> list[str]:
        whole = type("Whole", (Section,), {"__annotations__": {"part": params}, "part": params(**values)})
        stages = (Stage("one", "m", (), ("part",)),)
        default = type("Whole", (whole,), {"__annotations__": {"part": params}, "part": params()})
        decisions = plan(stages, default(part=params(**values)), {}, {"one": Source(1, {})})
        return [decision.key for decision in decisions]

    assert keys(Before) == keys(After) == keys(After, speed=9)
    assert keys(Before, size=2) == keys(After, size=2) != keys(Before)
    assert keys(After, shape="square") != keys(After)


def with_baselines(**values: Any) -> dict[str, Source]:
    named = {path.replace("__", "."): value for path, value in values.items()}
    return {name: Source(source.version, source.code, baselines=named) for name, source in SOURCES.items()}


def test_a_default_that_changes_is_a_changed_parameter():
    store = commit(decide(sources=with_baselines(train__steps=Config().train.steps)).values())
    decisions = decide(manifests=store, sources=with_baselines(train__steps=7))  # as if it had been 7 until now
    assert running(decisions) == TRAIN_AND_BELOW
    assert decisions["train"].reasons == (f"PARAMS train.steps 7 → {Config().train.steps}",)
    back = decide(config_with("train.steps", 7), manifests=store, sources=with_baselines(train__steps=7))
    assert running(back) == set()  # what the old default made


def test_baselines_of_settings_that_are_gone_change_nothing():
    assert decide(sources=with_baselines(train__gone=1))["train"].key == decide()["train"].key


@given(st.permutations(["a.py", "b.py", "c.py"]))
def test_keys_do_not_depend_on_the_order_of_parts(names):
    sources = SOURCES | {"train": Source(1, {name: "aaaa" for name in names})}
    reference = SOURCES | {"train": Source(1, {name: "aaaa" for name in sorted(names)})}
    assert decide(sources=sources)["train"].key == decide(sources=reference)["train"].key


def test_the_teachers_candidates_add_inputs_to_the_index_and_nothing_to_other_stages():
    config, manifests = config_with("index.candidates", "teacher"), default_store()
    decisions = decide(config, manifests)
    assert running(decisions) == {"index", "evaluate"}
    assert set(decisions["index"].parts["inputs"]) == {"ingest", "backbone", "features", "train"}
    assert "PARAMS index.candidates student → teacher" in decisions["index"].reasons
    assert set(decide(Config(), manifests)["index"].parts["inputs"]) == {"ingest", "train"}
    before = {stage.name: stage.inputs for stage in STAGES}
    assert {stage.name for stage in stages_of(config) if stage.inputs != before[stage.name]} == {"index"}
