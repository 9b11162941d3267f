"""Which edits make which stages run for their code: a table, tried on a copy of the tree.

`CODE` lists edits of code by file, `WORDS` edits that change no result anywhere. A stage that is not named must stay
cached; descendants of a named one run too, for their inputs, which `test_plan` covers.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.sections import Config
from pipeline.planning.closure import ROOT, closure, is_marked, module_file
from pipeline.planning.dag import STAGES
from pipeline.planning.sources import read_sources
from pipeline.planning.syntax import parse
from stages import backbone, features, index, ingest, train

ALL = {stage.name for stage in STAGES}
TRAINED = {"backbone", "distill", "train"}
WITH_MODELS = ALL - {"ingest"}

CODE = {
    "stages/ingest.py": {"ingest"},
    "stages/backbone.py": {"backbone"},
    "stages/features.py": {"features"},
    "stages/distill.py": {"distill"},
    "stages/train.py": {"train"},
    "stages/index.py": {"index"},
    "stages/evaluate.py": {"evaluate"},
    "stages/contract/params.py": ALL,
    "stages/contract/context.py": set(),
    "stages/contract/bucket.py": set(),
    "stages/contract/cache.py": set(),
    "stages/contract/placement.py": set(),
    "stages/data/ingest/validate.py": {"ingest"},
    "stages/data/ingest/flow.py": {"ingest"},
    "stages/data/ingest/wording.py": set(),
    "stages/data/images.py": {"ingest"},
    "stages/data/narrow.py": {"ingest"} | WITH_MODELS,
    "stages/data/formats.py": {"ingest"},
    "stages/data/sources/folders.py": set(),
    "stages/data/sources/columns.py": {"ingest", "index"},
    "stages/data/sources/delimited.py": set(),
    "stages/data/sources/records.py": set(),
    "stages/data/ingest/merge.py": set(),
    "stages/data/scenes/drawing.py": {"ingest"},
    "stages/data/sources/pairs.py": set(),
    "stages/data/sources/unlabelled.py": set(),
    "stages/data/schemas.py": {"ingest", "features"},
    "stages/data/keys.py": ALL,
    "stages/data/vectors.py": set(),
    "stages/data/order.py": TRAINED | {"features"},
    "stages/data/instructions.py": ALL,
    "stages/model/encoder.py": WITH_MODELS,
    "stages/model/inputs.py": WITH_MODELS,
    "stages/model/last_layer.py": WITH_MODELS,
    "stages/model/patches.py": WITH_MODELS,
    "stages/model/vision.py": WITH_MODELS,
    "stages/model/prompt.py": WITH_MODELS,
    "stages/model/prune.py": WITH_MODELS,
    "stages/model/taught.py": set(),
    "stages/learn/turning.py": TRAINED,
    "stages/distributed/rotation.py": TRAINED | {"evaluate"},
    "stages/model/checkpoint.py": WITH_MODELS,
    "stages/model/depth.py": {"distill"},
    "stages/model/tiny.py": {"backbone"},
    "stages/learn/losses.py": TRAINED,
    "stages/learn/sampling.py": TRAINED,
    "stages/learn/gradcache.py": TRAINED,
    "stages/learn/loop.py": TRAINED,
    "stages/distributed/training.py": TRAINED,
    "stages/distributed/tasks.py": TRAINED,
    "stages/distributed/student.py": {"distill", "train"},
    "stages/distributed/embedding.py": {"features", "index", "evaluate"},
    "stages/distributed/lessons.py": {"features"},
    "stages/distributed/shards.py": {"features", "index", "evaluate"},
    "stages/distributed/actors.py": {"features", "index", "evaluate"},
    "stages/distributed/pools.py": {"index", "evaluate"},
    "stages/distributed/queries.py": {"evaluate"},
    "stages/distributed/teacher.py": {"features", "evaluate"},
    "stages/distributed/teacher_pools.py": {"evaluate"},
    "stages/distributed/console.py": set(),
    "stages/distributed/corpus.py": set(),
    "stages/distributed/outside.py": set(),
    "stages/mining/mine.py": set(),
    "stages/export/checkpoint.py": TRAINED,
    "stages/export/card.py": set(),
    "stages/export/parity.py": set(),
    "stages/export/loaders.py": set(),
    "stages/export/mlflow_model.py": set(),
    "stages/export/router.py": set(),
    "stages/search/exact.py": {"index", "evaluate"},
    "stages/search/device.py": {"evaluate"},
    "stages/search/card.py": {"evaluate"},
    "stages/search/columns.py": {"index", "evaluate"},
    "stages/search/precision.py": {"index", "evaluate"},
    "stages/distributed/smaller.py": {"index"},
    "stages/evaluation/smaller.py": {"evaluate"},
    "stages/search/choice.py": {"index"},
    "stages/data/sources/counting.py": set(),
    "stages/search/leading.py": {"evaluate"},
    "stages/search/retriever.py": set(),
    "stages/evaluation/measures.py": {"evaluate"},
    "stages/evaluation/mbeir.py": {"evaluate"},
    "stages/evaluation/rank.py": {"evaluate"},
    "stages/evaluation/chance.py": {"features", "evaluate"},
    "stages/evaluation/cost.py": {"features", "evaluate"},
    "stages/evaluation/depth.py": {"features"},
    "stages/evaluation/sets.py": {"index", "evaluate"},
    "stages/evaluation/depth_view.py": set(),
    "stages/search/faiss_index.py": set(),  # made of the stored vectors when it is asked
    "stages/evaluation/examples.py": set(),
    "stages/evaluation/plots.py": set(),
    "stages/evaluation/page.py": set(),
    "stages/evaluation/report.py": set(),
    "stages/evaluation/markdown_table.py": set(),
}
"""The stages that run for a line of code more in a file, with the default configuration."""

WORDS = {
    "comments": (r"\A", "# A comment.\n"),
    "docstrings of modules": (r'\A"""', '"""In other words: '),
    "docstrings of functions": (r'(\n +"""(?=[A-Z]))', r"\1In other words: "),
    "bare strings": (r"\Z", '\n"""A bare string."""\n'),
    "help of settings": (r'(\bdescription=")', r"\1In other words: "),
    "help of train.register_as": (r'(register_as: .*\bdescription=")', r"\1in other words: "),
    "words of errors": (r'(raise \w+Error\(\s*f?")', r"\1Sorry: "),
    "lines of progress": (r'(\b(?:say|print)\(f?")', r"\1Now: "),
    "types of arguments": (r"(\(\w+): Any\b", r"\1: object"),
    "colours of plots": (r"#d1495b", "#000000"),
    "sentences of the report": (r"NOTES = \"\"\"", 'NOTES = """In short: '),
    "sentences of the card": (r"# Puma retriever", "# Small retriever"),
    "new settings": (r"(\nclass \w+\(Section\):\n(?: +\"\"\".*\"\"\"\n)?)", r"\1    added: int = 3\n"),
}
"""A pattern and what is put in its place, in every file of the stages: nothing runs."""

MARKED = {
    "stages/contract/bucket.py",
    "stages/contract/cache.py",
    "stages/contract/context.py",
    "stages/contract/placement.py",
    "stages/data/ingest/wording.py",
    "stages/distributed/console.py",
    "stages/evaluation/depth_view.py",
    "stages/evaluation/examples.py",
    "stages/evaluation/markdown_table.py",
    "stages/evaluation/page.py",
    "stages/evaluation/plots.py",
    "stages/evaluation/report.py",
    "stages/export/card.py",
    "stages/export/loaders.py",
    "stages/export/mlflow_model.py",
    "stages/export/parity.py",
    "stages/export/router.py",
    "stages/mining/audit.py",
}
"""The modules in no key. One more has to be one that nothing is computed from: else stale results are served."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree, which tests leave as it was."""
    root = tmp_path_factory.mktemp("tree")
    for package in ("pipeline", "stages"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def original(tree) -> dict[str, dict[str, str]]:
    return code_of(tree)


def code_of(tree: Path, config: Config | None = None) -> dict[str, dict[str, str]]:
    return {name: dict(source.code) for name, source in read_sources(STAGES, config or Config(), tree).items()}


@pytest.fixture
def edit(tree):
    """Changes a file of the copy until the end of the test."""
    before: dict[Path, str] = {}

    def change(path: Path, change: Callable[[str], str]) -> None:
        before.setdefault(path, path.read_text(encoding="utf-8"))
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    yield change
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")


def with_code(text: str) -> str:
    return f"{text}\n\nADDED = 1\n"


@pytest.mark.parametrize(("name", "stages"), CODE.items(), ids=CODE)
def test_a_line_of_code_runs_the_stages_that_compute_with_it_and_no_other(tree, original, edit, name, stages):
    edit(tree / name, with_code)
    after = code_of(tree)
    assert {stage for stage in after if after[stage] != original[stage]} == stages
    assert all(
        {path for path in after[stage] if after[stage][path] != original[stage][path]} == {name} for stage in stages
    )


@pytest.mark.parametrize(("pattern", "replacement"), WORDS.values(), ids=WORDS)
def test_words_run_nothing(tree, original, edit, pattern, replacement):
    changed = 0
    for path in tree.glob("stages/**/*.py"):
        text = path.read_text(encoding="utf-8")
        if found := re.findall(pattern, text):
            edit(path, lambda text: re.sub(pattern, replacement, text))
            compile(path.read_bytes(), path, "exec")
            changed += len(found)
    assert changed
    assert code_of(tree) == original


def test_a_template_runs_nothing(tree, original, edit):
    edit(tree / "stages/evaluation/report.html.jinja", lambda text: text + "<!-- more -->")
    assert code_of(tree) == original


def test_the_words_of_a_rejected_row_are_part_of_the_artifact(tree, original, edit):
    for path in tree.glob("stages/data/**/*.py"):
        edit(path, lambda text: re.sub(r'(raise BadField\(")', r"\1rather ", text))
    assert code_of(tree)["ingest"] != original["ingest"]


# ------------------------------------------------------------------------------- what a configuration does not come to


def test_a_backbone_from_outside_does_not_depend_on_the_training_of_a_tiny_one(tree, edit):
    hub = Config.model_validate({"backbone": {"source": "hub", "model": "a/b", "revision": "c"}})
    before = code_of(tree, hub)
    for name in ("stages/learn/losses.py", "stages/model/tiny.py", "stages/distributed/training.py"):
        edit(tree / name, with_code)
    after = code_of(tree, hub)
    assert {stage for stage in ALL if after[stage] != before[stage]} == {"distill", "train"}


def test_a_backbone_from_outside_that_is_tuned_depends_on_the_training_and_not_on_how_a_tiny_one_is_drawn(tree, edit):
    tuned = {"source": "hub", "model": "a/b", "revision": "c", "tune": {"steps": 3}}
    config = Config.model_validate({"backbone": tuned})
    before = code_of(tree, config)
    edit(tree / "stages/model/tiny.py", with_code)
    assert code_of(tree, config) == before
    edit(tree / "stages/learn/losses.py", with_code)
    after = code_of(tree, config)
    assert {stage for stage in ALL if after[stage] != before[stage]} == TRAINED


def test_mining_counts_where_negatives_are_mined(tree, edit):
    mined = Config.model_validate({"train": {"mine": {"per_query": 2}}})
    before = code_of(tree, mined)
    edit(tree / "stages/mining/negatives.py", with_code)
    after = code_of(tree, mined)
    assert {stage for stage in ALL if after[stage] != before[stage]} == {"train"}


def test_the_teachers_code_counts_in_an_index_of_its_candidates(tree, edit):
    asymmetric = Config.model_validate({"index": {"candidates": "teacher"}})
    before = code_of(tree, asymmetric)
    edit(tree / "stages/distributed/teacher_pools.py", with_code)
    after = code_of(tree, asymmetric)
    assert {stage for stage in ALL if after[stage] != before[stage]} == {"index", "evaluate"}


@pytest.mark.parametrize(
    ("kind", "read"),
    [("scenes", {"scenes"}), ("mbeir", set()), ("pairs", {"pairs"}), ("corpus", {"pairs", "unlabelled"})],
)
def test_a_source_depends_on_its_own_format(kind, read):
    found = closure("stages.ingest", without=ingest.unused_modules(ingest.Params(kind=kind, path="somewhere")))
    formats = {name: f"stages.data.sources.{name}" for name in ("pairs", "unlabelled")}
    formats["scenes"] = "stages.data.scenes.dataset"
    assert {name for name, module in formats.items() if module in found} == read


def test_what_a_configuration_spares_is_used_under_another_one():
    spared = {
        "stages.backbone": backbone.unused_modules(backbone.Params(source="hub")),
        "stages.train": train.unused_modules(train.Params()),
        "stages.ingest": ingest.unused_modules(ingest.Params(kind="mbeir")),
        "stages.index": index.unused_modules(index.Params()),
        "stages.features": features.unused_modules(features.Params()),
    }
    for stage, modules in spared.items():
        assert modules and set(modules) <= set(closure(stage))
        assert all(module_file(name, ROOT) for name in modules)


def test_the_modules_in_no_key_are_known():
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "stages").rglob("*.py")}
    assert {name for name, path in files.items() if is_marked(parse(path.read_bytes()))} == MARKED


# ------------------------------------------------------------------------------------------------------------ settings

PARTS = """
import json
from pipeline.config.sections import Config
from pipeline.planning.dag import STAGES
from pipeline.planning.plan import plan
from pipeline.planning.sources import read_sources

config = Config()
decisions = plan(STAGES, config, {}, read_sources(STAGES, config))
print(json.dumps({one.stage: {"key": one.key, **one.parts} for one in decisions}))
"""


def parts_of(tree: Path) -> dict[str, dict]:
    """The parts of every key, by the code of the copy."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PARTS]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def set_default(text: str, value: str) -> str:
    changed = re.sub(r"(hard_until: float = Field\()[\d.]+", rf"\g<1>{value}", text)
    assert changed != text
    return changed


def test_a_changed_default_runs_its_stage_for_its_parameters(tree, edit):
    before = parts_of(tree)
    edit(tree / "stages/train.py", lambda text: set_default(text, "0.25"))
    after = parts_of(tree)
    differing = {
        stage: {part for part in after[stage] if part != "key" and after[stage][part] != before[stage][part]}
        for stage in after
        if after[stage]["key"] != before[stage]["key"]
    }
    assert differing == {"train": {"params"}, "index": {"inputs"}, "evaluate": {"inputs"}}
    assert after["train"]["params"] == {"train.hard_until": 0.25}


def test_a_new_setting_at_its_default_keeps_every_key(tree, edit):
    before = parts_of(tree)
    for name in ("stages/train.py", "stages/ingest.py", "stages/contract/params.py"):
        edit(tree / name, lambda text: re.sub(*WORDS["new settings"], text))
    assert parts_of(tree) == before
