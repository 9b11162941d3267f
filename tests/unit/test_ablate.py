"""Ablations on a small graph of made-up stages: shared work, failures, resumption, tables."""

import json
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import pipeline.ablate
import pipeline.ablation.cells
import pipeline.ablation.grid
import pipeline.execution.cluster
from pipeline.ablation import grid_run
from pipeline.ablation.costs import cost_of, cost_rows
from pipeline.ablation.document import check_output
from pipeline.ablation.picture import draw_depths, shows_depths
from pipeline.ablation.tables import Outcome, VariantRow
from pipeline.planning.sources import read_sources
from stages.contract.context import InputError, StageError
from tests.made_stages import STAGES, Small, Tracked, fail

GRID = {
    "seeds": [0, 1],
    "vary": ["train.register_as"],
    "always": {"full": {"train.word": "full", "seeds": [0]}},
    "reference": "full",
    "tables": {"one": {"a": {"train.word": "a"}, "b": {"train.word": "b"}}, "two": {"a again": {"train.word": "a"}}},
}


def load_small(recipe, overrides):
    values = {"store": "store"}
    for override in overrides:
        key, _, value = override.partition("=")
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return Small(**values)


@pytest.fixture
def ablate(hooks, tmp_path, monkeypatch, capfd):
    starts, log = [], []

    @contextmanager
    def cluster(params):
        starts.append("start")
        try:
            yield
        finally:
            starts.append("stop")

    monkeypatch.chdir(tmp_path)
    for module in (pipeline.ablation.cells, grid_run):
        monkeypatch.setattr(module, "stages_of", lambda config: STAGES)
    monkeypatch.setattr(pipeline.ablation.cells, "WITH_OWN_DATA", STAGES)
    monkeypatch.setattr(pipeline.ablation.grid, "load_config", load_small)
    monkeypatch.setattr(pipeline.ablation.grid, "known_depths", lambda config: [1, 2])
    monkeypatch.setattr(pipeline.ablation.cells, "read_sources", lambda *of: read_sources(*of, tmp_path / "code"))
    monkeypatch.setattr(pipeline.execution.cluster, "connected", cluster)
    monkeypatch.setattr(grid_run, "PipelineRun", lambda uri, name, tags: Tracked(log, name))
    monkeypatch.setattr(grid_run, "check_artifact", lambda *given: None)  # of a configuration with its sections
    (tmp_path / "grid.yaml").write_text(json.dumps(GRID))
    hooks.quality |= {"full": 0.8, "a": 0.6, "b": 0.4}
    stdout = os.dup(1)

    def call(*arguments: str) -> SimpleNamespace:
        code = pipeline.ablate.main(["smoke", "grid.yaml", *arguments])
        sys.stdout.flush()
        os.dup2(stdout, 1)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, log=log, starts=starts)

    yield call
    os.close(stdout)


def test_cells_share_what_they_have_in_common_and_one_cluster(ablate, hooks):
    done = ablate("--output", "tables.md")
    assert done.code == 0
    assert done.starts == ["start", "stop"]
    assert {name: hooks.calls.count(name) for name in ("ingest", "train", "evaluate")} == {
        "ingest": 1,
        "train": 5,
        "evaluate": 5,
    }
    assert "to run: 1 × ingest, 5 × train, 5 × evaluate" in done.out
    assert "[1/8] full, seed 0: hit@5 0.800" in done.out


def test_the_tables_have_mean_spread_and_share_of_the_upper_bound(ablate, hooks, tmp_path):
    hooks.quality["full"] = 1.0
    hooks.actions["evaluate"] = lambda context: hooks.quality.update(a=hooks.quality["a"] + 0.1)
    ablate("--output", "tables.md")
    text = (tmp_path / "tables.md").read_text()
    one, two = text.split("### one")[1].split("### two")
    for table in (one, two):
        assert "| full | 2 | " in table and " | 100.0% | " in table
    row = next(line for line in one.splitlines() if line.startswith("| a |"))
    # The first evaluation is that of `full`, the next two are those of `a`: 0.6 + 2 × 0.1 and 0.6 + 3 × 0.1.
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["2", "0.850 ± 0.071", "85.0%", "0.850 ± 0.071"]
    assert "python pipeline/ablate.py smoke grid.yaml" in text and "cores of" in text
    assert "Seeds: train.register_as = 0, 1;" in text


def test_json_holds_every_cell(ablate):
    answer = json.loads(ablate("--json").out)
    assert [cell["variant"] for cell in answer["cells"]] == ["full", "a", "a", "b", "b", "full", "a again", "a again"]
    assert answer["cells"][0]["metrics"]["local"]["hit@5"] == 0.8 and answer["mlflow"]["run_id"]


def test_a_failed_cell_is_reported_in_its_row_and_the_rest_goes_on(ablate, hooks, tmp_path):
    def failing(context):
        if context.params.train.word == "b":
            raise StageError("no memory")

    hooks.actions["train"] = failing
    done = ablate("--output", "tables.md")
    assert done.code == 1 and "2 of 8 cells failed, first b, seed 0" in done.err and "Traceback" not in done.err
    text = (tmp_path / "tables.md").read_text()
    assert "| b | – | – | – | – |" in text and "0 of 2 |" in text
    assert "- b, seed 1: stage train failed: no memory" in text
    assert "| a | 2 | 0.600 ± 0.000 |" in text
    hooks.actions.clear()
    again = ablate("--output", "tables.md")
    assert again.code == 0 and "failed" not in (tmp_path / "tables.md").read_text()
    assert hooks.calls.count("train") == 7


def test_a_depth_that_a_made_backbone_does_not_have_stops_its_cells_before_later_stages(ablate, hooks, monkeypatch):
    def too_deep(config, decisions, stage, artifact):
        if stage == "ingest" and config.train.word == "b":
            raise InputError("student.layers=9 is too many: the backbone has 4 layers")

    monkeypatch.setattr(grid_run, "check_artifact", too_deep)
    done = ablate()
    assert done.code == 1 and done.out.count("failed: student.layers=9 is too many") == 2
    assert hooks.calls.count("train") == 3  # full, and a with two seeds


def test_a_failure_that_cells_share_is_met_once(ablate, hooks):
    hooks.actions["ingest"] = fail(InputError("no such directory"))
    done = ablate()
    assert done.code == 1 and hooks.calls == ["ingest"]
    assert done.out.count("failed: no such directory") == 8


def test_a_second_call_computes_nothing_and_needs_no_cluster(ablate, hooks, tmp_path):
    first = ablate("--output", "tables.md")
    text = (tmp_path / "tables.md").read_text()
    first.starts.clear()
    done = ablate("--output", "tables.md")
    assert len(hooks.calls) == 11 and done.starts == []
    assert "to run: nothing" in done.out
    assert (tmp_path / "tables.md").read_text() == text
    assert ("a, seed 1", "child", "hit") in done.log


def test_a_finished_cell_that_is_damaged_is_reported_in_its_row_and_the_rest_goes_on(ablate, tmp_path):
    cells = json.loads(ablate("--json").out)["cells"]
    (damaged,) = (tmp_path / next(cell["uri"] for cell in cells if cell["variant"] == "a")).glob("*/metrics.json")
    damaged.write_text("{")
    done = ablate("--output", "tables.md")
    assert done.code == 1 and "2 of 8 cells failed, first a, seed 0" in done.err and "Traceback" not in done.err
    text = (tmp_path / "tables.md").read_text()
    assert "- a, seed 0: " in text and "metrics.json" in text and "| b | 2 | 0.400 ± 0.000 |" in text


def test_an_interrupt_keeps_what_is_known_and_the_next_call_goes_on(ablate, hooks, tmp_path):
    def interrupted(context):
        if context.params.train.word == "b":
            raise KeyboardInterrupt

    hooks.actions["train"] = interrupted
    done = ablate("--output", "tables.md", "--json")
    assert done.code == 130 and done.starts == ["start", "stop"]
    assert "| a | 2 | 0.600 ± 0.000 |" in (tmp_path / "tables.md").read_text()
    assert "5 of 8 cells were not reached" in (tmp_path / "tables.md").read_text()
    assert ("grid of smoke", "end", "KILLED") in done.log
    assert len([cell for cell in json.loads(done.out)["cells"] if "metrics" in cell]) == 3
    hooks.actions.clear()
    assert ablate().code == 0
    assert hooks.calls.count("train") == 6


def test_an_interrupt_before_the_first_result_leaves_the_file_as_it_was(ablate, hooks, tmp_path):
    (tmp_path / "tables.md").write_text("What we knew.\n")
    hooks.actions["ingest"] = fail(KeyboardInterrupt())
    done = ablate("--output", "tables.md")
    assert done.code == 130 and ("grid of smoke", "end", "KILLED") in done.log
    assert (tmp_path / "tables.md").read_text() == "What we knew.\n"


def test_code_that_changes_meanwhile_stops_the_grid(ablate, hooks, tmp_path):
    def edited(context):
        if context.params.train.word == "a":
            file = tmp_path / "code" / "fakes" / "train.py"
            file.write_text(file.read_text().replace("VERSION = 1", "VERSION = 1\nEDITED = True"))

    hooks.actions["train"] = edited
    done = ablate("--output", "tables.md")
    assert done.code == 1 and "stage train changed while the grid ran (CODE fakes/train.py)" in done.err
    assert hooks.calls.count("train") == 2
    assert "| full | 2 | 0.800 |" in (tmp_path / "tables.md").read_text()


def test_a_plan_writes_nothing(ablate, tmp_path):
    done = ablate("--plan")
    assert done.code == 0 and "ingest and on" in done.out
    assert not (tmp_path / "store").exists()


def test_a_section_is_replaced_and_the_rest_of_the_file_stays(ablate, tmp_path):
    file = tmp_path / "tables.md"
    file.write_text("# What we found\n\nIn plain words.\n")
    ablate("--output", "tables.md")
    file.write_text(file.read_text() + "\nA closing word.\n")
    ablate("--output", "tables.md")
    text = file.read_text()
    assert text.startswith("# What we found\n\nIn plain words.\n") and text.endswith("\nA closing word.\n")
    assert text.count("## Grid `grid` on recipe `smoke`") == 1


def test_a_document_names_no_place_of_this_machine(ablate, tmp_path):
    ablate("--output", "tables.md", f"data.word={tmp_path}/grocery", f"tracking_uri=sqlite:///{tmp_path}/x.db")
    text = (tmp_path / "tables.md").read_text()
    assert text.startswith("# Tables\n") and "data.word=…/grocery" in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "nowhere/tables.md"], "there is no directory nowhere"),
        (["--outpt", "tables.md"], "unknown option '--outpt'; did you mean '--output'?"),
    ],
)
def test_wrong_options_exit_with_two_and_write_nothing(ablate, tmp_path, arguments, words):
    done = ablate(*arguments)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_tables_that_could_not_be_written_hours_later_are_refused(tmp_path, monkeypatch):
    """The file is replaced and not written into, so it is its directory that counts."""
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=r"tables\.md can't be written; give a file in a directory that can be"):
        check_output(tmp_path / "tables.md")
    check_output(tmp_path.parent / "tables.md")


def test_a_search_prefers_runs_that_stand_for_themselves(store):
    from pipeline.lookup.indexes import find_keys

    attempt = store.begin("index", "k" * 16)
    store.commit(attempt, {})
    for number, grid in ((1, ""), (2, "method")):
        stages = {"index": {"key": "k" * 16}, "train": {"key": grid or "alone"}}
        store.write_run(
            {"id": str(number), "started": f"2026-01-0{number}", "config": {}, "grid": grid, "stages": stages}
        )
    assert find_keys(store, "store", {})["train"] == "alone"
    with pytest.raises(InputError):
        find_keys(open_empty(store), "store", {})


def open_empty(store):
    return type(store)(store.root / "empty")


def manifests(steps, weight):
    """Manifests of a student of 10 of 30 layers, of a million parameters in its layers."""
    stage = {"steps": steps, "batch_size": 4}
    config = {"distill": {**stage, "feature_weight": weight}, "train": stage}
    size = {"layers": 10, "decoder_parameters": 1e6, "tokens_per_pair": 50.0, "teacher_layers": 30}
    return {
        "features": {"metrics": {"rows": 1000}, "seconds": 600, "config": config},
        "distill": {"metrics": size, "seconds": 60, "config": config},
        "train": {"metrics": size, "seconds": 120, "config": config},
    }


def test_a_cell_costs_what_its_student_meets_and_what_the_teacher_reads_for_it():
    found = cost_of(manifests(steps=100, weight=1.0), labels=7)
    assert (found.labels, found.passes, found.pairs, found.minutes) == (7, 1000, (400, 400), 13)
    # 6 operations × a million × 50 tokens × 800 pairs; 2 × three million × 25 tokens × 1,000 rows of the teacher's.
    assert found.petaflop * 1e15 == pytest.approx(6 * 1e6 * 50 * 800 + 2 * 3e6 * 25 * 1000)


def test_a_teacher_that_weighs_nothing_costs_nothing():
    found = cost_of(manifests(steps=100, weight=0.0), labels=7)
    assert (found.passes, found.minutes) == (0, 3) and found.petaflop * 1e15 == pytest.approx(6 * 1e6 * 50 * 800)
    assert cost_of(manifests(steps=0, weight=1.0), labels=7).petaflop == 0
    beside = manifests(steps=100, weight=0.0)
    beside["train"]["config"]["train"]["feature_weight"] = 0.5  # the teacher pulls in the last training alone
    assert cost_of(beside, labels=7).passes == 1000


def test_rows_that_the_last_training_alone_meets_are_read_at_their_own_length():
    taught = manifests(steps=100, weight=1.0)
    taught["features"]["metrics"]["labelled"] = 400
    taught["train"]["metrics"] = taught["train"]["metrics"] | {"tokens_per_pair": 20.0}
    found = cost_of(taught, labels=7)
    read = 2 * 3e6 * (25 * 600 + 10 * 400)
    assert found.passes == 1000 and found.petaflop * 1e15 == pytest.approx(6 * 1e6 * (50 + 20) * 400 + read)


def test_a_live_teacher_reads_every_row_of_every_step_and_what_was_cached_counts_where_it_is_used():
    live = manifests(steps=100, weight=1.0)
    live["train"]["config"]["distill"]["teacher"] = "live"
    found = cost_of(live, labels=7)
    assert (found.passes, found.minutes) == (2 * 400, 3)
    live["train"]["config"]["train"]["feature_weight"] = 0.5
    found = cost_of(live, labels=7)
    assert (found.passes, found.minutes) == (2 * 400 + 1000, 13)


def test_the_time_of_a_stage_that_went_on_from_a_killed_one_is_not_known():
    went_on = manifests(steps=100, weight=1.0)
    went_on["distill"]["resumed"] = True
    found = cost_of(went_on, labels=7)
    assert found.minutes is None
    assert cost_rows([("it", [found])])[1][-1] == "–"
    assert cost_rows([("it", [found, cost_of(manifests(steps=100, weight=1.0), labels=7)])])[1][-1] == "13.0"


def test_what_a_teacher_from_outside_computes_is_not_known_and_not_summed():
    made = manifests(steps=100, weight=1.0)
    made["features"]["metrics"]["teacher"] = "outside"
    found = cost_of(made, labels=7)
    assert (found.passes, found.minutes) == (1000, 13) and found.petaflop * 1e15 == pytest.approx(6 * 1e6 * 50 * 800)


def test_rows_of_several_depths_make_a_picture():
    def row(name, layers, quality):
        student = {"layers": layers, "latency_ms": {"median": 2.0 * layers}, "local": {"hit@5": quality}}
        return VariantRow(name, [0], [Outcome("key", {"student": student})])

    rows = [row("first 1", 1, 0.2), row("first 2", 2, 0.4), row("first 4", 4, 0.5)]
    assert shows_depths(rows) and not shows_depths(rows[:2])
    (axes,) = draw_depths(rows, None, "Layers").axes
    assert [text.get_text() for text in axes.texts] == ["1 layer", "2 layers", "4 layers"]
    assert [tuple(text.xy) for text in axes.texts] == [(2.0, 0.2), (4.0, 0.4), (8.0, 0.5)]
    (axes,) = draw_depths([*rows, row("the teacher", 4, 0.6)], None, "Layers").axes
    assert [text.get_text() for text in axes.texts] == ["1 layer", "2 layers", "first 4", "the teacher"]
