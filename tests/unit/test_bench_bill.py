"""The bill of full M-BEIR: its counts against figures that were published or counted elsewhere."""

import pytest

from stages.evaluation import mbeir
from tests.bench import bill, published


def test_the_sets_are_those_of_the_published_score():
    assert {one.name for one in published.SETS} == set(mbeir.SETS) and len(published.SETS) == 16


def test_the_sets_add_up_to_what_is_published_of_them_together():
    assert sum(one.pool for one in published.SETS) == pytest.approx(5.6e6, rel=0.01)
    assert sum(one.train for one in published.SETS) == pytest.approx(published.TRAIN_QUERIES, rel=0.001)
    assert sum(one.test for one in published.SETS) == pytest.approx(190e3, rel=0.01)
    assert sum(one.val for one in published.SETS) == pytest.approx(182e3, rel=0.01)


@pytest.mark.parametrize(("size", "layers", "billions"), [("7B", 28, 6.53), ("7B", 12, 2.80), ("2B", 28, 1.31)])
def test_the_shapes_have_the_parameters_of_the_published_models(size, layers, billions):
    assert bill.SHAPES[size].layer * layers == pytest.approx(billions * 1e9, rel=0.005)


def test_a_token_costs_two_flop_for_each_parameter_where_it_is_alone():
    shape = bill.SHAPES["7B"]
    assert shape.decode(1, 28) == pytest.approx(2 * 28 * shape.layer, rel=0.001)
    assert shape.see(1) == pytest.approx(2 * 0.675e9 * bill.PATCHES, rel=0.1)


def test_a_gpu_is_taken_at_what_it_was_measured_to_do():
    assert 0.2 < bill.training_share() < bill.embedding_share() < 0.4


def test_every_stage_stands_in_the_bill_and_says_how_its_figures_were_got():
    lines = bill.bill("7B")
    assert [line.stage.partition(":")[0] for line in lines] == [
        *("ingest", "backbone", "features", "distill", "train", "index", "evaluate", "evaluate", "evaluate"),
    ]
    ways = ("published", "counted", "measured")
    assert all(any(way in line.how for way in ways) and line.seconds(4, 989e12) > 0 for line in lines)


def test_more_machines_are_faster_but_for_what_each_has_to_move():
    train = next(line for line in bill.bill("7B") if line.stage == "train")
    few, many = train.seconds(4, 989e12), train.seconds(32, 989e12)
    assert few / 8 < many < few
    assert many - train.each / bill.NETWORK == pytest.approx((few - train.each / bill.NETWORK) / 8)


def test_where_decoding_takes_longer_than_the_gpu_its_time_stands():
    slow, fast = (bill.Line("x", "", "", flop=1e15, pictures=count) for count in (1e9, 1.0))
    assert slow.seconds(1, 1e15) == pytest.approx(1e9 * bill.DECODE_SECONDS / bill.DECODERS)
    assert fast.seconds(1, 1e15) == pytest.approx(1 / bill.embedding_share())


def test_every_machine_copies_the_pictures_before_its_gpu_has_any_and_reads_all_vectors_for_each_task_of_ranking():
    lines = {line.stage: line for line in bill.bill("7B")}
    assert lines["features"].each >= published.PICTURE_BYTES
    vectors = published.CANDIDATES * bill.SHAPES["7B"].hidden * 2
    for name in ("evaluate: ranking", "evaluate: the raw teacher"):
        assert [lines[name].each * lines[name].times(machines) / vectors for machines in (1, 4, 32)] == [6, 2, 1]
    assert lines["evaluate: ranking"].seconds(32, 989e12) >= vectors / bill.NETWORK
