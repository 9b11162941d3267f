"""Grids: which cells they come to, and how wrong ones are refused before anything runs."""

import json

import pytest

from pipeline.ablation.grid import GRIDS, find_cells, read_grid
from pipeline.run import main as run_pipeline
from stages.contract.context import InputError


def cells_of(tmp_path, recipe="smoke", overrides=(), **content):
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps(content))  # which YAML reads
    return find_cells(*read_grid(str(path)), recipe, list(overrides))


def test_a_cell_is_each_variant_with_each_seed(tmp_path):
    cells = cells_of(tmp_path, seeds=[3, 4], tables={"loss": {"a": {"train.loss": "infonce"}, "b": {"seeds": [9]}}})
    assert [(cell.variant, cell.seed) for cell in cells] == [("a", 3), ("a", 4), ("b", 9)]
    assert [(cell.config.train.loss, cell.config.train.seed, cell.config.distill.seed) for cell in cells] == [
        ("infonce", 3, 3),
        ("infonce", 4, 4),
        ("mac", 9, 9),
    ]
    assert {cell.config.seed for cell in cells} == {0}


def test_what_heads_every_table_stands_in_each(tmp_path):
    cells = cells_of(tmp_path, always={"top": {}}, tables={"one": {"a": {}}, "two": {"b": {}}})
    assert [(cell.table, cell.variant) for cell in cells] == [
        ("one", "top"),
        ("one", "a"),
        ("two", "top"),
        ("two", "b"),
    ]


def test_the_command_line_beats_the_base_and_a_variant_beats_both(tmp_path):
    content = {"base": {"train.steps": 1, "distill.steps": 1}, "tables": {"t": {"a": {"distill.steps": 9}}}}
    (cell,) = cells_of(tmp_path, overrides=["train.steps=2", "distill.steps=3"], **content)
    assert (cell.config.train.steps, cell.config.distill.steps) == (2, 9)


def test_each_is_a_row_for_every_value_and_layers_are_those_of_the_backbone(tmp_path):
    swept = {"first {}": {"student.layers": {"each": "layers"}}, "τ {}": {"train.temperature": {"each": [0.1, 0.2]}}}
    cells = cells_of(tmp_path, tables={"t": swept})
    assert [cell.variant for cell in cells] == ["first 1", "first 2", "first 3", "first 4", "τ 0.1", "τ 0.2"]
    assert [cell.config.student.layers for cell in cells[:4]] == [1, 2, 3, 4]
    some = {"first {}": {"student.layers": {"each": "layers", "of": [8, 3, 1]}}}
    cells = cells_of(tmp_path, tables={"t": {"all": {}, **some}})
    assert [cell.variant for cell in cells] == ["all", "first 1", "first 3"]


def test_the_full_depth_has_one_spelling_so_that_equal_cells_share_a_key(tmp_path):
    variants = {"full": {"student.layers": "full", "features.layer": 4}, "four": {"student.layers": 4}}
    full, four = cells_of(tmp_path, tables={"t": variants})
    assert full.config.model_dump() == four.config.model_dump()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "tables: Field required"),
        ({"tables": {}}, "tables"),
        ({"tabels": {"t": {"a": {}}}, "tables": {"t": {"a": {}}}}, "tabels"),
        ({"tables": {"t": {"a": {"train.lss": 1}}}}, "'a' of 't': unknown key 'train.lss'"),
        ({"tables": {"t": {"a": {"student.layers": 99}}}}, "'a' of 't': student.layers=99 is too many"),
        ({"tables": {"t": {"a": {"cluster.workers": 2}}}}, "'a' sets cluster.workers, which all cells share"),
        ({"tables": {"t": {"a": {"seeds": 1}}}}, "'a': seeds must be a list"),
        ({"tables": {"t": {"a": {"train.steps": {"each": [1]}}}}}, "a variant with {} in its name"),
        ({"tables": {"t": {"a {}": {"train.steps": {"every": [1]}}}}}, "{each: [values]}"),
        ({"tables": {"t": {"a {}": {"train.steps": {"each": [1], "of": [1]}}}}}, "{each: layers, of: [some]}"),
        ({"tables": {"t": {"a": {}}}, "reference": "aa"}, "reference 'aa' is no variant"),
        ({"tables": {"t": {"a": {}}}, "vary": ["distil.seed"]}, "unknown key 'distil.seed'"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(tmp_path, content, words):
    with pytest.raises(InputError) as caught:
        cells_of(tmp_path, **content)
    assert words in str(caught.value) and "grid.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'method'"):
        read_grid("methd")


ALL = sorted(path.stem for path in GRIDS.glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in ALL if name != "half_depth"])  # none of its depths is the demo's
def test_every_grid_of_the_package_fits_the_demo(name):
    path, grid = read_grid(name)
    cells = find_cells(path, grid, "demo", [])
    references = {cell.table for cell in cells if cell.variant == grid.reference}
    assert references == ({cell.table for cell in cells} if grid.reference else set())  # it is in every table


@pytest.mark.parametrize("name", ALL)
def test_every_variant_of_every_grid_has_a_cell_where_the_backbone_is_deep_enough(name):
    path, grid = read_grid(name)
    cells = find_cells(path, grid, "demo", ["backbone.tiny.layers=30"])
    for table, variants in grid.tables.items():
        made = {cell.variant for cell in cells if cell.table == table}
        for variant in {**grid.always, **variants}:
            start, _, end = variant.partition("{}")
            assert any(one.startswith(start) and one.endswith(end) for one in made)


def test_a_grid_of_depths_that_a_backbone_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"half_depth.yaml: no variant fits demo, whose backbone has 4 layers"):
        find_cells(*read_grid("half_depth"), "demo", [])


def test_a_cell_is_a_command_of_the_pipeline(capsys):
    cell = find_cells(*read_grid("upper_bound"), "smoke", [])[0]
    assert run_pipeline(["--recipe", "smoke", "--plan", *cell.overrides]) == 0
