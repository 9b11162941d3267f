"""The depth curve: a loaded model cut in place is the cut checkpoint, its costs add up, and k follows from a loss."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from stages.contract.context import StageError
from stages.distill import Student
from stages.distributed.lessons import sum_states
from stages.distributed.teacher import ReadOut
from stages.evaluate import read_layers
from stages.evaluation.cost import Depth, measure_depths
from stages.evaluation.depth import best_layer, curve_of, mean_of_sides
from stages.evaluation.depth_view import curve_table, plot_curve
from stages.evaluation.page import depth_of
from stages.model.depth import choose_layers, shallowest
from stages.model.encoder import Encoder
from stages.model.families import FAMILIES
from stages.model.prune import first_layers
from tests.tiny_models import ragged_rows, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("depth") / "model", "qwen2_vl", layers=3)


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return Encoder.load(checkpoint)


@pytest.fixture(scope="module")
def costs(encoder):
    return measure_depths(encoder, ragged_rows(), 4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_first_layers_of_a_loaded_model_compute_what_a_cut_checkpoint_does(checkpoint, encoder, layers):
    cut = Encoder.load(checkpoint, layers)
    depth = Depth(encoder, layers)
    np.testing.assert_allclose(depth.encode(ragged_rows(), 4), cut.encode(ragged_rows(), 4), rtol=0, atol=2e-6)
    assert depth.parameters_count == cut.parameters_count
    assert depth.bytes_count == 4 * cut.parameters_count
    assert encoder.layers == 3


def test_the_model_is_whole_again_after_an_error(encoder):
    with pytest.raises(KeyError), first_layers(encoder.backbone, 1):
        raise KeyError
    assert encoder.layers == len(encoder.backbone.language_model.layers) == 3


def test_every_layer_adds_its_weights_to_the_memory(encoder, costs):
    assert [cost["layers"] for cost in costs] == [1, 2, 3]
    layer = 4 * (costs[1]["parameters"] - costs[0]["parameters"]) / 2**20
    grown = np.diff([cost["memory_mib"] for cost in costs])
    # One layer's activations are gone before the next one's are made, so depth costs its weights and no more.
    np.testing.assert_allclose(grown, layer, rtol=0.1)
    assert costs[0]["memory_mib"] > 4 * costs[0]["parameters"] / 2**20
    assert all(cost["latency_ms"]["median"] > 0 and cost["queries_per_second"] > 0 for cost in costs)


def test_memory_counts_what_is_alive_at_one_time(encoder):
    import torch

    from stages.evaluation.cost import peak_bytes

    def encode(rows, batch_size):
        first = torch.ones(1000, 1000)
        second = first @ first
        del first
        return torch.cat([second, second])

    depth = SimpleNamespace(encoder=SimpleNamespace(device=torch.device("cpu")), encode=encode)
    assert peak_bytes(depth, [0], 1) == pytest.approx(3 * 4 * 1000 * 1000, rel=0.01)


def curve(*hits: float) -> dict:
    cost = {"parameters": 10**6, "latency_ms": {"median": 2.0}, "queries_per_second": 500.0, "memory_mib": 4.0}
    entries = [
        {"layers": k, "hit@5": hit, "hit@5 centred": hit / 2, "sets": {"a": hit}, **cost}
        for k, hit in enumerate(hits, start=1)
    ]
    return {"layers": entries, "chance hit@5": 0.05}


@pytest.mark.parametrize(
    ("max_loss", "depths", "chosen"),
    [
        (0.0, (1, 2, 3, 4), 3),
        (0.1, (1, 2, 3, 4), 3),
        (0.11, (1, 2, 3, 4), 2),
        (0.5, (1, 2, 3, 4), 1),
        (0.5, (3, 4), 3),
        (0.0, (2, 4), 4),
    ],
)
def test_the_fewest_layers_that_lose_no_more_than_allowed(max_loss, depths, chosen):
    assert shallowest(curve(0.40, 0.72, 0.81, 0.80), max_loss, depths) == chosen


def test_the_depths_of_a_student_are_whole_groups_or_all_layers():
    assert list(FAMILIES["qwen2_vl"].depths(3)) == [1, 2, 3]
    assert list(FAMILIES["qwen3_vl"].depths(5)) == [3, 4, 5]
    assert list(FAMILIES["qwen3_5"].depths(10)) == [4, 8, 10]
    assert list(FAMILIES["qwen3_vl"].depths(2)) == [2]


def test_the_table_has_a_line_for_each_depth():
    lines = curve_table(curve(0.40, 0.80)).splitlines()
    assert lines[2] == "| 1 | 0.400 | 50.0% | 0.200 | 1.00 | 2.0 | 500 | 4.0 |"
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert "–" in curve_table(curve(0.0, 0.0))


@pytest.mark.parametrize(
    ("centred", "words"), [(True, "Layer 2 teaches, with the mean taken off."), (False, "Layer 2 teaches.")]
)
def test_the_table_says_which_layer_teaches_and_how(centred, words):
    table = curve_table(curve(0.40, 0.80) | {"teacher": {"layer": 2, "centred": centred}})
    assert table.splitlines()[-2:] == ["", words]


def test_the_plot_shows_quality_and_three_costs():
    axes = plot_curve(curve(0.4, 0.8)).axes
    assert [one.get_ylabel() for one in axes] == [
        "hit@5",
        "million parameters",
        "milliseconds per query",
        "MiB of memory",
    ]
    assert all(list(one.lines[0].get_xdata()) == [1, 2] for one in axes)


@pytest.mark.parametrize(("hits", "layer"), [((0.1, 0.4, 0.3), 2), ((0.2, 0.5, 0.5), 3)])
def test_the_layer_that_finds_best_may_teach(hits, layer):
    assert best_layer(curve(*hits)) == (layer, False)


def test_the_layer_that_finds_best_may_be_one_with_its_mean_taken_off():
    of = curve(0.2, 0.5, 0.4)
    of["layers"][2]["hit@5 centred"] = 0.6
    assert best_layer(of) == (3, True) == best_layer(of, centre=True)
    assert best_layer(of, centre=False) == (2, False)
    of["layers"][2]["hit@5 centred"] = 0.5
    assert best_layer(of) == (2, False)  # of equals the one as it is


@pytest.mark.parametrize("off", [False, True])
def test_the_curve_equals_a_loop_in_float64_with_and_without_the_mean(off):
    draw = np.random.default_rng(4)
    queries, candidates, depths, dim = 12, 40, 2, 6
    direction = np.array([[30.0], [0.0]]) * draw.normal(size=dim)  # the first layer's states have much in common
    sides = [draw.normal(size=(count, depths, dim)) + direction for count in (queries, candidates)]
    states = [side.astype(np.float16) for side in sides]
    modalities = draw.choice(["text", "image"], candidates)
    positives = draw.integers(0, candidates, queries)
    for query, positive in enumerate(positives):  # so that there is something to find
        states[0][query] = states[1][positive] + 0.5 * draw.normal(size=(depths, dim))
    tables = [
        pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(side.reshape(-1)), depths * dim)})
        for side in states
    ]
    asked = tables[0].append_column("dataset", pa.array(["made"] * queries))
    asked = asked.append_column("task_id", pa.array(draw.integers(0, 2, queries)))
    asked = asked.append_column("positives", pa.array([[f"c{positive}"] for positive in positives]))
    asked = asked.append_column("target_modality", pa.array([modalities[positive] for positive in positives]))
    pool = tables[1].append_column("did", pa.array([f"c{number}" for number in range(candidates)]))
    pool = pool.append_column("modality", pa.array(modalities))
    for depth, entry in enumerate(curve_of(asked, pool, dim)["layers"]):
        query_QD, candidate_CD = (side[:, depth].astype(np.float64) for side in states)
        mean_D = (query_QD.mean(0) + candidate_CD.mean(0)) / 2 * off
        found: dict[int, list[bool]] = {}
        for query, positive in enumerate(positives):
            others = [place for place in range(candidates) if modalities[place] == modalities[positive]]
            scores = {place: cosine(query_QD[query] - mean_D, candidate_CD[place] - mean_D) for place in others}
            best = sorted(others, key=lambda place: -scores[place])[:5]
            found.setdefault(asked["task_id"][query].as_py(), []).append(positive in best)
        expected = np.mean([np.mean(hits) for hits in found.values()])
        assert entry["hit@5 centred" if off else "hit@5"] == pytest.approx(expected)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_the_states_of_a_file_are_summed_in_float64(tmp_path):
    states = np.full((5000, 3), 2048.0, np.float16) + np.arange(3, dtype=np.float16)  # in fp16 a sum would overflow
    column = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), 3)
    pq.write_table(pa.table({"vector": column}), tmp_path / "part.parquet", row_group_size=7)
    rows, total = sum_states(str(tmp_path / "part.parquet"), LocalFileSystem(), 3)
    assert rows == 5000 and total.tolist() == (5000 * states[0].astype(np.float64)).tolist()


def test_both_sides_weigh_the_same_in_the_mean():
    assert mean_of_sides([np.array([1.0, 0.0]), np.array([3.0, 4.0])]).tolist() == [2.0, 2.0]


def chosen_layers(checkpoint, *hits: float, **student) -> tuple[int, int | tuple[int, ...]]:
    features = SimpleNamespace(read_json={"depth_curve.json": curve(*hits)}.__getitem__)
    return choose_layers(checkpoint, Student(**student), features)


@pytest.mark.parametrize(
    ("student", "layers"),
    [
        ({"layers": "auto"}, 2),
        ({"layers": "auto", "max_loss": 0.6}, 1),
        ({"layers": "full"}, 3),
        ({"layers": 1}, 1),
        ({"layers": (1, 3)}, (1, 3)),
        ({"layers": (1, 2)}, 2),
    ],
)
def test_distillation_resolves_how_many_layers_the_student_keeps(checkpoint, student, layers):
    assert chosen_layers(checkpoint, 0.4, 0.75, 0.8, **student) == (3, layers)


def test_more_layers_than_there_are_fail_in_one_line(checkpoint):
    with pytest.raises(StageError, match=r"can be cut to 1\.\.3"):
        chosen_layers(checkpoint, 0.4, layers=9)
    with pytest.raises(StageError, match=r"student.layers=\[1, 9\] can't be kept: the backbone has 3 layers"):
        chosen_layers(checkpoint, 0.4, layers=(1, 9))


def test_the_cut_is_measured_for_the_first_layers_only_and_a_line_says_so(checkpoint, tmp_path, capsys):
    student = write_checkpoint(tmp_path / "student", "qwen2_vl", layers=2)
    models = {"teacher": checkpoint, "student": student}
    capsys.readouterr()  # what writing said
    assert read_layers(models) == {"teacher": ReadOut(3), "cut": ReadOut(2)} and capsys.readouterr().err == ""
    settings = json.loads((student / "puma.json").read_text())
    (student / "puma.json").write_text(json.dumps(settings | {"kept_layers": [1, 3]}))
    assert read_layers(models) == {"teacher": ReadOut(3)}
    assert "layers 1, 3 without training are left out of the tables" in capsys.readouterr().err


def test_a_student_of_other_layers_than_the_first_stands_nowhere_on_the_curve():
    assert depth_of({"layers": 2}) == 2 and depth_of({"layers": 2, "kept_layers": [1, 3]}) == 0
