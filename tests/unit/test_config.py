"""Recipes and overrides: what they accept, and one line for what they don't."""

import re
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.config.recipes import RECIPES
from pipeline.config.sections import Config
from stages import distill as distillation
from stages.contract.context import InputError
from stages.train import objective
from tests.configured import COMMIT, checkpoint, refusal


def recipe(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_valid_once_its_places_are_given(name, tmp_path):
    given = ["data.kind=scenes"]
    given += [f"backbone.revision={COMMIT}"] if "qwen2vl" in name else []
    if name == "smollm2":
        given += checkpoint(tmp_path / "m", model_type="qwen2_vl", num_hidden_layers=30)
    assert load_config(name, given).student.layers >= 1


def test_the_paper_s_recipe_demands_a_revision():
    assert "backbone.revision=COMMIT" in refusal("data.kind=scenes", recipe="puma_qwen2vl_7b")


def test_the_7b_recipe_is_the_2b_recipe_with_another_model():
    given = ["data.kind=scenes", f"backbone.revision={COMMIT}"]
    small, large = (load_config(f"puma_qwen2vl_{size}", given) for size in ("2b", "7b"))
    assert large.backbone.model == "Qwen/Qwen2-VL-7B-Instruct"
    assert large.model_copy(update={"backbone": small.backbone}) == small


def test_the_paper_s_recipe_has_the_published_numbers():
    """Each follows from the published ones by another way than the recipe's comments."""
    config = load_config("puma_qwen2vl_7b", ["data.kind=scenes", f"backbone.revision={COMMIT}"])
    distill, train, gpus = config.distill, config.train, config.cluster.workers
    assert (distill.batch_size // gpus, train.batch_size // gpus) == (72, 150)
    assert train.steps == 2 * (1_332_790 // train.batch_size)
    published = distillation.objective(distill)
    assert published.feature_loss == "mse"
    assert published.feature_weight / 2 == pytest.approx(0.1 * 0.05)  # the mean over both sides is half their sum
    assert distill.learning_rate * distill.first_layer_rate == pytest.approx(1e-4)
    hard = objective(train)
    assert [hard.tau_hard(progress) for progress in (0, 0.1, 0.25, 0.5, 1)] == [0.03, 0.027, 0.023, 0.018, 0.018]
    assert {(one.lora.rank, one.lora.alpha, one.lora.scale) for one in (distill, train)} == {(128, 256, 2)}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate", 0.001),
        ("train.learning_rate=2E-4", "train.learning_rate", 0.0002),
        ("train.learning_rate=.5", "train.learning_rate", 0.5),
        ("train.steps=1_000", "train.steps", 1000),
        ("store=s3://bucket/prefix", "store", "s3://bucket/prefix"),
        ("backbone.revision=1234567", "backbone.revision", "1234567"),
        ("backbone.revision=12e45", "backbone.revision", "12e45"),
        ("train.register_as=no", "train.register_as", "no"),
        ("train.register_as=2026-01-01", "train.register_as", "2026-01-01"),
        ("tracking_uri=", "tracking_uri", ""),
        ("store=a=b", "store", "a=b"),
        ("store=c/a b=c #1, é", "store", "c/a b=c #1, é"),
        ("store='a #1' # quoted", "store", "a #1"),
        ("train.steps=5 # few", "train.steps", 5),
        ("train.loss=infonce", "train.loss", "infonce"),
        ("student.layers=[1, 3]", "student.layers", (1, 3)),
        ("train.matryoshka=[32, 64]", "train.matryoshka", (32, 64)),
        ("data.scenes={train: 20, val: 9}", "data.scenes.train", 20),
    ],
)
def test_overrides_are_read_as_their_fields_need(override, path, value):
    found = load_config("demo", [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_a_value_in_the_place_of_a_section_is_reported_also_where_the_recipe_fills_the_section(tmp_path):
    filled = recipe(tmp_path / "filled.yaml", "train:\n  steps: 7\n")
    assert "'train' is a section in override train=3" in refusal("train=3", recipe=filled)
    assert load_config(filled, ["train=3", "train.steps=4"]).train.steps == 4


def test_later_overrides_win():
    assert load_config("demo", ["train.steps=1", "train.steps=2"]).train.steps == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=3", "unknown key 'train.stepz' in override train.stepz=3; did you mean 'train.steps'?"),
        ("trian.steps=3", "did you mean 'train.steps'?"),
        ("layers=3", "did you mean 'student.layers'?"),
        ("xyzzy=3", "known: store, store_endpoint, tracking_uri, seed, data"),
        ("train.steps.x=3", "'train.steps' is one value and has no key 'x'"),
        ("train=3", "'train' is a section in override train=3; set one of its keys: steps"),
        ("train.steps=many", "train.steps must be a whole number ≥ 0, not 'many', in override train.steps=many"),
        ("train.steps=-1", "train.steps must be a whole number ≥ 0, not -1"),
        ("train.steps=3.5", "a whole number"),
        ("train.steps=true", "not True"),
        ("train.steps=", "not nothing"),
        ("train.learning_rate=.inf", "a number > 0, not inf"),
        ("train.learning_rate=.nan", "not nan"),
        ("train.learning_rate=inf", "train.learning_rate must be a number > 0, not inf, in override train.learning_r"),
        ("train.clip=inf", "train.clip must be a number"),
        ("distill.lora.alpha=inf", "distill.lora.alpha must be a number ≥ 0, not inf"),
        ("cluster.cpus_per_worker=inf", "cluster.cpus_per_worker must be a number > 0, not inf"),
        ("trian={}", "unknown key 'trian' in override trian={}; did you mean 'train'?"),
        ("train.stepz={}", "did you mean 'train.steps'?"),
        ("train.steps={}", "train.steps must be a whole number ≥ 0, not {}, in override train.steps={}"),
        (
            "train.loss=infonc",
            "one of mac, infonce, mamcl, learnable, mac_learnable, not 'infonc', in override train.loss=infonc; did",
        ),
        ("cluster.precision=fp16", "one of auto, fp32, bf16"),
        ("store=", "store must be text"),
        ("steps", "'steps' is not an override; write key=value"),
        ("train.loss=[1", "is not valid YAML"),
        ("a b=1", "is not an override"),
        ("train.steps=!!int x", "the value in 'train.steps=!!int x' is not valid YAML"),
        ("train.steps=!!timestamp x", "is not valid YAML"),
        ("train.matryoshka=" + "[" * 5000, "is not valid YAML"),
        ('store="a\\0b"', "store holds a character that no name can hold, 'a\\x00b'"),
        ('store="a\\ud800b"', "store holds a character that no name can hold"),
        ("store=" + "x" * 300, "store holds a longer name than a file can have, in override store=xxx"),
        ("data.path=a/" + "ä" * 200, "data.path holds a longer name than a file can have"),
        ("store=" + "xx/" * 3000, "store holds a longer name than a file can have"),
        ("seed=100000000000000000000000000", "seed must be a whole number ≥ 0 and ≤ 4294967295"),
    ],
)
def test_wrong_overrides_are_reported_in_one_line(override, words):
    assert words in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student.layers=0"], "student.layers=0 is too few in override student.layers=0: a student keeps at least 1"),
        (
            ["student.layers=atuo"],
            "must be a whole number or one of auto, full or a list, each a whole number, not 'atuo'",
        ),
        (
            ["student.layers=true"],
            "must be a whole number or one of auto, full or a list, each a whole number, not True",
        ),
        (["student.max_loss=0.2"], "student.max_loss does nothing in override student.max_loss=0.2"),
        (["train.mine.per_query=4", "train.steps=0"], "mines for no training in override train.mine.per_query=4"),
        (
            ["student.layers=[3, 1]"],
            "student.layers=[3, 1] can't be kept in override student.layers=[3, 1]: give their",
        ),
        (["student.layers=[1, 99]"], "can't be kept in override student.layers=[1, 99]: the backbone has"),
        (["student.layers=[]"], "give their numbers from 1 on"),
        (["student.layers=[1, 2]", "student.max_loss=0.2"], "with student.layers=[1, 2]; set it to auto"),
        (["student.layers=99"], "student.layers=99 is too many in override student.layers=99: the backbone has"),
        (["data.kind=mbeir"], "data.kind=mbeir needs data.path"),
        (["distill.data.kind=corpus"], "distill.data.kind=corpus needs distill.data.path, the place of the data"),
        (["distill.data.path=x"], "distill.data.kind is empty; add distill.data.kind=corpus"),
        (["distill.data.kind=corpus", "distill.data.path=/gone"], "distill.data.path=/gone is not there"),
        (["distill.data.kind=texts"], "one of (empty), mbeir, pairs, corpus, not 'texts'"),
        (["data.kind=corpus", "data.path=/tmp", "student.layers=auto"], "student.layers=auto in override"),
        (["data.kind=corpus", "data.path=/tmp", "features.layer=auto"], "needs labels, and data.kind=corpus has none"),
        (["index.columns.text=Title"], "names columns of a corpus of your own; add index.corpus=FILE"),
        (["data.columns.text=Title"], "data.columns names columns of a corpus without labels; add data.kind=corpus"),
        (["data.path=x"], "add data.kind=mbeir"),
        (["data.path=x.jsonl"], "add data.kind=pairs"),
        (["data.kind=pairs"], "add data.path=FILE"),
        (["backbone.source=hub"], "needs backbone.model"),
        (["backbone.source=hub", "backbone.model=a/b"], "needs backbone.revision"),
        (["backbone.source=hub", "backbone.model=a/b", "backbone.revision=main"], "main is not one of 40 hexadecimal"),
        (["backbone.source=hub", "backbone.model=/models/Qwen2-VL-2B"], "add backbone.source=local for a directory"),
        (["backbone.source=hub", "backbone.model=https://huggingface.co/a/b"], "is no id of a hub model, such as"),
        (["backbone.source=local", "backbone.model=nowhere"], "it has no config.json"),
        (["backbone.model=a/b"], "add backbone.source=local or hub"),
        (["backbone.tiny.hidden=50"], "a whole number ≥ 32 and a multiple of 32, not 50"),
        (["backbone.min_pixels=9000", "backbone.max_pixels=8000"], "backbone.min_pixels=9000 is above"),
        (["features.layer=0"], "features.layer=0 is no layer"),
        (["features.layer=best"], "features.layer must be"),
        (["features.layer=99"], "choose -1 for the last, or 1 to"),
        (["features.layer=-99"], "choose -1 for the last, or 1 to"),
        (["train.matryoshka=[64, 128]"], "choose from 1 to 127, a vector has 128"),
        (["train.matryoshka=[0]"], "train.matryoshka=[0] are no leading dimensions in override"),
        (["train.matryoshka=[a]"], "train.matryoshka must be a list, each a whole number, not 'a'"),
        (["cluster.workers=3", "train.batch_size=64"], "can't be shared by cluster.workers=3"),
        (["train.muon_rate=0.02"], "train: muon_rate works without clipping, and clip is 1; set clip=0"),
        (["backbone.tiny.clip=1"], "backbone.tiny: muon_rate works without clipping"),
        (["distill.contrastive_weight=0", "distill.feature_weight=0"], "distill learns from nothing in override"),
        (["backbone.tune.steps=5"], "raise backbone.tiny.steps, or add backbone.source=local or hub"),
        (
            ["train.least_crop=0.5", "train.feature_weight=0.1"],
            "that the teacher of train.feature_weight has read whole",
        ),
        (["distill.least_crop=0.5"], "set it to 1, or distill.teacher=live"),
    ],
)
def test_impossible_combinations_are_refused(overrides, words):
    assert words in refusal(*overrides)


def test_unknown_recipes_are_reported_with_the_nearest_name():
    assert "there is no recipe 'dmo'; did you mean 'demo'?" in refusal(recipe="dmo")
    assert "there is no recipe file ./x.yaml" in refusal(recipe="./x.yaml")
    assert "there is no recipe 'xxxx" in refusal(recipe="x" * 300)


def test_a_recipe_that_is_a_directory_is_called_one(tmp_path):
    assert refusal(recipe=str(tmp_path)).startswith(f"recipe {tmp_path} is a directory; give a YAML file in it")


def test_a_recipe_file_extends_another_and_is_named_in_errors(tmp_path):
    base = recipe(tmp_path / "base.yaml", "extends: demo\ntrain:\n  steps: 7\n  batch_size: 8\n")
    child = recipe(tmp_path / "child.yaml", "extends: base.yaml\ntrain: {steps: 8}\n")
    assert load_config(base).train.steps == 7
    assert (load_config(child).train.steps, load_config(child).train.batch_size) == (8, 8)
    wrong = recipe(tmp_path / "wrong.yaml", "train:\n  stepz: 8\n")
    assert f"unknown key 'train.stepz' in {wrong}; did you mean" in refusal(recipe=wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [", "is not valid YAML"),
        ("- a\n- b\n", "is not a recipe"),
        ("train:\n  steps: 1\n  steps: 2\n", "'steps' stands twice"),
        ("extends: me.yaml\n", "goes round in a circle"),
        ("train:\n  steps: yes\n", "must be a whole number ≥ 0, not 'yes'"),
        ("train: 5\n", "'train' is a section"),
        ("train:\n  steps: !!int x\n", "is not valid YAML"),
        ('store: "a\\0b"\n', "store holds a character that no name can hold"),
        ("train: " + "[" * 5000, "is not valid YAML"),
        ("train: &all\n  steps: *all\n", "is not valid YAML: an alias stands inside the value that it names"),
        ("train:\n  matryoshka: &all [*all]\n", "is not valid YAML: an alias stands inside the value that it names"),
        ("nosuch: {}\n", "unknown key 'nosuch' in "),
        ("train:\n  steps: {}\n", "train.steps must be a whole number ≥ 0, not {}, in "),
    ],
)
def test_broken_recipe_files_are_reported_in_one_line(tmp_path, text, words):
    assert words in refusal(recipe=recipe(tmp_path / "me.yaml", text))


def test_an_empty_section_and_an_alias_beside_its_value_are_fine(tmp_path):
    text = "train: {}\ndistill:\n  lora: &same {rank: 2}\nbackbone:\n  tune:\n    lora: *same\n"
    made = load_config(recipe(tmp_path / "me.yaml", text), ["distill={}"])
    assert (made.train, made.distill.lora.rank, made.backbone.tune.lora.rank) == (Config().train, 2, 2)


def test_an_empty_recipe_is_the_defaults(tmp_path):
    assert load_config(recipe(tmp_path / "empty.yaml", "")) == Config()


@pytest.mark.parametrize(
    "uri", ["127.0.0.1:5000", "nonsense://x", "localhost:5000", "http://", "http:///x", "./mlruns"]
)
def test_an_address_that_mlflow_does_not_know_is_refused(monkeypatch, uri):
    assert f"tracking_uri={uri} is no address of MLflow; write http://HOST:PORT" in refusal(f"tracking_uri={uri}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert f"MLFLOW_TRACKING_URI={uri} is no address of MLflow" in refusal()
    load_config("demo", ["tracking_uri=sqlite:///x.db"])


def test_addresses_that_mlflow_knows_are_taken(monkeypatch):
    for uri in (
        "https://h/mlflow",
        "sqlite:////p/x.db",
        "postgresql+psycopg2://u:p@h/db",
        "databricks",
        "uc:http://h",
    ):
        load_config("demo", [f"tracking_uri={uri}"])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    load_config("demo", ["tracking_uri=./mlruns"])


def test_the_top_level_keys_are_the_contract_s():
    assert list(Config.model_fields) == [
        "store", "store_endpoint", "tracking_uri", "seed", "data", "backbone", "features", "student", "distill",
        "train", "index", "evaluate", "cluster",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.loss=mac", "train.temperature=0.03", "train.hard_decay=6"], "τ_hard falls to 0"),
        (["train.loss=mac", "train.temperature=0.0008"], "lower train.hard_decay or raise train.temperature"),
        (["train.loss=learnable", "train.temperature=0.005"], "below 0.01 in override train.temperature=0.005"),
        (["train.loss=mac_learnable", "train.hard_temperature=0.005"], "train.hard_temperature=0.005 is below 0.01"),
    ],
)
def test_temperatures_that_end_at_nothing_are_refused(overrides, words):
    with pytest.raises(InputError, match=re.escape(words)):
        load_config("demo", overrides)
