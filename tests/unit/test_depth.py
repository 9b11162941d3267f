"""The depth curve: a loaded model cut in place is the cut checkpoint, its costs add up, and k follows from a loss."""

from types import SimpleNamespace

import numpy as np
import pytest

from stages.contract.context import StageError
from stages.distill import Student
from stages.evaluation.cost import Depth, measure_depths
from stages.evaluation.depth import best_layer
from stages.evaluation.depth_view import curve_table, plot_curve
from stages.model.depth import choose_layers, shallowest
from stages.model.encoder import Encoder
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
    np.testing.assert_array_equal(depth.encode(ragged_rows(), 4), cut.encode(ragged_rows(), 4))
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
    entries = [{"layers": k, "hit@5": hit, "sets": {"a": hit}, **cost} for k, hit in enumerate(hits, start=1)]
    return {"layers": entries, "chance hit@5": 0.05}


@pytest.mark.parametrize(
    ("max_loss", "least", "chosen"), [(0.0, 1, 3), (0.1, 1, 3), (0.11, 1, 2), (0.5, 1, 1), (0.5, 3, 3), (0.0, 4, 4)]
)
def test_the_fewest_layers_that_lose_no_more_than_allowed(max_loss, least, chosen):
    assert shallowest(curve(0.40, 0.72, 0.81, 0.80), max_loss, least) == chosen


def test_the_table_has_a_line_for_each_depth():
    lines = curve_table(curve(0.40, 0.80)).splitlines()
    assert lines[2] == "| 1 | 0.400 | 50.0% | 1.00 | 2.0 | 500 | 4.0 |"
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert "–" in curve_table(curve(0.0, 0.0))


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
    assert best_layer(curve(*hits)) == layer


def chosen_layers(checkpoint, *hits: float, **student) -> tuple[int, int]:
    features = SimpleNamespace(read_json={"depth_curve.json": curve(*hits)}.__getitem__)
    return choose_layers(checkpoint, Student(**student), features)


@pytest.mark.parametrize(
    ("student", "layers"),
    [
        ({"layers": "auto"}, 2),
        ({"layers": "auto", "max_loss": 0.6}, 1),
        ({"layers": "full"}, 3),
        ({"layers": 1}, 1),
    ],
)
def test_distillation_resolves_how_many_layers_the_student_keeps(checkpoint, student, layers):
    assert chosen_layers(checkpoint, 0.4, 0.75, 0.8, **student) == (3, layers)


def test_more_layers_than_there_are_fail_in_one_line(checkpoint):
    with pytest.raises(StageError, match=r"can be cut to 1\.\.3"):
        chosen_layers(checkpoint, 0.4, layers=9)
