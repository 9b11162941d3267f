"""The objective against a float64 reference written from the published formulas, with plain loops and no torch.

Tolerances: the code computes in float32, where half a unit in the last place of a temperature moves a logit of 50 by
3e-6; a wrong mask, temperature or column changes these losses by more than 1e-2.
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.keys import NOTHING
from stages.learn.loop import centred
from stages.learn.losses import (
    Temperature,
    feature_loss,
    mac_tau,
    no_negatives,
    relational_loss,
    same_modality,
    similarity_loss,
    softmax_loss,
)
from stages.learn.objective import Objective, losses
from stages.learn.schedules import learning_rate_factor, tau_hard_at

QUERIES, DIM = 5, 7
several = settings(max_examples=25, deadline=None)  # a busy machine is no failure


def case(seed: int, modalities: int = 3, negatives: int = 2) -> SimpleNamespace:
    """A step of one rank with hard negatives, empty places, repeated ids and contents, and several positives."""
    draw = np.random.default_rng(seed)
    places = QUERIES * (1 + negatives)
    rows = int(draw.integers(QUERIES, places + 1))
    dids = draw.integers(1, 12, places)
    dids[rows:] = NOTHING
    # Two ids in three have contents of their own; the others share one with another id.
    contents = np.where(dids % 3 == 0, dids // 2 + 1, dids) * 100
    contents[rows:] = NOTHING
    positives = [np.unique(np.append(draw.integers(1, 12, 2), dids[query])) for query in range(QUERIES)]
    pairs = SimpleNamespace(
        query_rows=[None] * QUERIES,
        candidate_hash=dids,
        content_hash=contents,
        modality=draw.integers(0, modalities, places),
        positives=positives,
        contents=[np.where(known % 3 == 0, known // 2 + 1, known) * 100 for known in positives],
    )
    states = draw.normal(size=(QUERIES + rows, DIM)) * draw.uniform(0.5, 3, (QUERIES + rows, 1))
    return SimpleNamespace(
        pairs=pairs, states_RD=states.astype(np.float32), teacher=draw.normal(size=(2 * QUERIES, DIM))
    )


def cosine(one, other) -> float:
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def is_left_out(pairs, query: int, place: int, loss: str) -> bool:
    """The rules for negatives, one by one."""
    if place == query:
        return False
    if pairs.candidate_hash[place] == NOTHING or pairs.candidate_hash[place] in pairs.positives[query]:
        return True
    if pairs.content_hash[place] in pairs.contents[query]:
        return True
    return loss == "mamcl" and pairs.modality[place] != pairs.modality[query]


def reference(of: SimpleNamespace, loss: str, tau_norm: float, tau_hard: float, dim: int = DIM) -> float:
    """-mean log( exp(s_p/τ_p) / Σ_j exp(s_j/τ_j) ) in float64."""
    states, total = of.states_RD.astype(np.float64)[:, :dim], 0.0
    for query in range(QUERIES):
        terms = {}
        for place, state in enumerate(states[QUERIES:]):
            if not is_left_out(of.pairs, query, place, loss):
                intra = of.pairs.modality[place] == of.pairs.modality[query]
                tau = tau_hard if loss.startswith("mac") and intra else tau_norm
                terms[place] = math.exp(cosine(states[query], state) / tau)
        total -= math.log(terms[query] / sum(terms.values()))
    return total / QUERIES


def reference_back(of: SimpleNamespace, loss: str, tau_norm: float, tau_hard: float) -> float:
    """The same from positives to queries: a query is left out that the positive answers as well."""
    states, total = of.states_RD.astype(np.float64), 0.0
    for place in range(QUERIES):
        terms = {}
        for query in range(QUERIES):
            if not is_left_out(of.pairs, query, place, loss):
                intra = of.pairs.modality[place] == of.pairs.modality[query]
                tau = tau_hard if loss.startswith("mac") and intra else tau_norm
                terms[query] = math.exp(cosine(states[query], states[QUERIES + place]) / tau)
        total -= math.log(terms[place] / sum(terms.values()))
    return total / QUERIES


def measured(of: SimpleNamespace, objective: Objective, progress: float = 0.0, temperature=None):
    step = SimpleNamespace(pairs=of.pairs, teacher_RD=torch.tensor(of.teacher, dtype=torch.float32))
    return losses(torch.tensor(of.states_RD), step, objective, progress, temperature)


@several
@given(st.integers(0, 10_000), st.sampled_from(["mac", "infonce", "mamcl"]), st.sampled_from([0.0, 0.2, 0.7]))
def test_the_contrastive_losses_equal_their_formulas(seed, loss, progress):
    of = case(seed)
    # The published schedule, once more: exp(-r · 2 · min(½, progress)), r = ½, rounded to thousandths.
    tau_hard = round(0.05 * math.exp(-min(0.5, progress)), 3)
    value, parts = measured(of, Objective(loss, 0.05), progress)
    assert value.item() == pytest.approx(reference(of, loss, 0.05, tau_hard), rel=1e-5, abs=1e-5)
    assert parts.get("tau_hard", tau_hard) == tau_hard


@several
@given(st.integers(0, 10_000), st.sampled_from(["mac", "infonce", "mamcl"]))
def test_the_symmetric_loss_is_the_mean_of_both_directions(seed, loss):
    of = case(seed)
    expected = (reference(of, loss, 0.05, 0.05) + reference_back(of, loss, 0.05, 0.05)) / 2
    value, _ = measured(of, Objective(loss, 0.05, symmetric=True))
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@several
@given(st.integers(0, 10_000))
def test_the_learnable_temperature_is_infonce_with_a_gradient(seed):
    of, temperature, step = case(seed), Temperature(0.07), 1e-4
    value, parts = measured(of, Objective("learnable", 0.07), temperature=temperature)
    value.backward()
    assert parts["tau"] == pytest.approx(0.07, rel=1e-6)
    assert value.item() == pytest.approx(reference(of, "infonce", 0.07, 0.07), rel=1e-5, abs=1e-5)
    above, below = (reference(of, "infonce", 0.07 * math.exp(-sign * step), 0) for sign in (1, -1))
    assert temperature.log_scale.grad.item() == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-4)


@several
@given(st.integers(0, 10_000), st.booleans())
def test_the_two_learnable_temperatures_are_those_of_mac_loss_with_a_gradient_each(seed, symmetric):
    of, step = case(seed), 1e-4
    objective = Objective("mac_learnable", 0.07, hard_temperature=0.05, symmetric=symmetric)
    temperature = Temperature(*objective.learnt_temperatures())
    value, parts = measured(of, objective, 0.7, temperature)
    value.backward()
    assert (parts["tau_norm"], parts["tau_hard"]) == (pytest.approx(0.07, rel=1e-6), pytest.approx(0.05, rel=1e-6))

    def expected(*taus: float) -> float:
        one = reference(of, "mac", *taus)
        return (one + reference_back(of, "mac", *taus)) / 2 if symmetric else one

    assert value.item() == pytest.approx(expected(0.07, 0.05), rel=1e-5, abs=1e-5)
    factors = math.exp(-step), math.exp(step)  # of τ, where its parameter grows and shrinks by a step
    norm = (expected(0.07 * factors[0], 0.05) - expected(0.07 * factors[1], 0.05)) / (2 * step)
    hard = (expected(0.07, 0.05 * factors[0]) - expected(0.07, 0.05 * factors[1])) / (2 * step)
    assert temperature.log_scale.grad.tolist() == pytest.approx([norm, hard], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("hard", "starts"), [(0.0, (0.03, 0.03)), (0.02, (0.03, 0.02))])
def test_both_learnable_temperatures_start_where_mac_loss_does(hard, starts):
    assert Objective("mac_learnable", 0.03, hard_temperature=hard).learnt_temperatures() == starts
    assert Objective("learnable", 0.03, hard_temperature=hard).learnt_temperatures() == (0.03,)
    assert Objective("mac", 0.03, hard_temperature=hard).learnt_temperatures() == ()


def test_the_learnable_temperature_stops_at_a_hundredth_and_finds_its_way_back():
    temperature = Temperature(0.07)
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    tau = temperature()
    assert tau.item() == pytest.approx(0.01, rel=1e-5)
    tau.backward()
    assert temperature.log_scale.grad.item() < 0  # a larger τ is still reached by a smaller parameter


@several
@given(st.integers(0, 10_000))
def test_the_matryoshka_loss_is_the_mean_over_its_dimensions(seed):
    of = case(seed)
    expected = [reference(of, "mac", 0.05, 0.05, dim) for dim in (2, 4, DIM)]
    value, parts = measured(of, Objective("mac", 0.05, dims=(2, 4)))
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-5, abs=1e-5)
    assert parts["contrastive 2d"] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cosine", "relational", "kl"])
@several
@given(seed=st.integers(0, 10_000))
def test_the_feature_losses_equal_their_formulas_and_are_weighed(kind, seed):
    of = case(seed)
    student, teacher = of.states_RD[: 2 * QUERIES].astype(np.float64), of.teacher
    rows = range(2 * QUERIES)
    expected = {
        "mse": np.mean([(a - b) ** 2 for a, b in zip(student.ravel(), teacher.ravel(), strict=True)]),
        "cosine": np.mean([1 - cosine(student[row], teacher[row]) for row in rows]),
        "relational": np.mean(
            [(cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])) ** 2 for i in rows for j in rows]
        ),
    }
    expected["kl"] = np.mean([divergence(student, teacher, row, 0.2) for row in rows])
    weighed = {"contrastive_weight": 0.9, "feature_loss": kind, "feature_weight": 0.3, "feature_temperature": 0.2}
    value, parts = measured(of, Objective("infonce", 0.05, **weighed))
    assert parts[f"feature {kind}"] == pytest.approx(expected[kind], rel=1e-4, abs=1e-6)
    total = 0.9 * reference(of, "infonce", 0.05, 0) + 0.3 * expected[kind]
    assert value.item() == pytest.approx(total, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cosine", "relational", "kl"])
def test_a_teacher_without_its_mean_is_compared_with_the_student_as_it_is(kind):
    of = case(3)
    mean = of.teacher.mean(axis=0) + 0.5
    student, teacher = of.states_RD[: 2 * QUERIES].astype(np.float64), of.teacher - mean
    rows = range(2 * QUERIES)
    expected = {
        "mse": np.mean((student - teacher) ** 2),
        "cosine": np.mean([1 - cosine(student[row], teacher[row]) for row in rows]),
        "relational": np.mean(
            [(cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])) ** 2 for i in rows for j in rows]
        ),
        "kl": np.mean([divergence(student, teacher, row, 0.05) for row in rows]),
    }
    of.teacher = centred(lambda pairs: torch.tensor(of.teacher, dtype=torch.float32), mean.tolist())(None).numpy()
    value, _ = measured(of, Objective("infonce", 0.05, contrastive_weight=0, feature_loss=kind, feature_weight=1))
    assert value.item() == pytest.approx(expected[kind], rel=1e-4, abs=1e-6)


def divergence(student: np.ndarray, teacher: np.ndarray, row: int, tau: float) -> float:
    """KL of one row's neighbours, in float64: from the teacher's distribution to the student's."""
    others = [other for other in range(len(student)) if other != row]
    logs = []
    for states in (student, teacher):
        logits = np.array([cosine(states[row], states[other]) / tau for other in others])
        logs.append(logits - np.log(np.exp(logits).sum()))
    return float(np.sum(np.exp(logs[1]) * (logs[1] - logs[0])))


@pytest.mark.parametrize("kind", ["mse", "cosine", "relational", "kl"])
def test_alignment_alone_asks_for_no_labels(kind):
    of = case(1)
    value, parts = measured(of, Objective("infonce", 0.05, contrastive_weight=0, feature_loss=kind, feature_weight=2))
    assert value.item() == pytest.approx(2 * parts[f"feature {kind}"], rel=1e-6)
    assert set(parts) == {f"feature {kind}"}


def test_teachers_of_another_width_or_scale_teach_relations():
    student = torch.randn(4, 6)
    wider = torch.cat([3 * student, torch.zeros(4, 2)], dim=1)
    assert relational_loss(student, wider, student, wider).item() == pytest.approx(0, abs=1e-10)
    assert similarity_loss(student, wider, student, wider, 0.05).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(student, 3 * student, "cosine").item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(student, 3 * student, "mse").item() > 1


@pytest.mark.parametrize(("modalities", "hard"), [(1, 0.018), (3, 0.03)])
@several
@given(seed=st.integers(0, 1000))
def test_mac_loss_becomes_infonce(modalities, hard, seed):
    """With one modality it is InfoNCE at τ_hard; with τ_hard = τ_norm it is InfoNCE whatever the modalities."""
    of = case(seed, modalities)
    objective = Objective("mac", 0.03, hard_temperature=hard, hard_decay=0.0)
    mac, _ = measured(of, objective)
    infonce, _ = measured(of, Objective("infonce", hard))
    assert mac.item() == pytest.approx(infonce.item(), rel=1e-6)


@several
@given(st.integers(0, 1000))
def test_mac_loss_tends_to_mamcl_as_other_modalities_grow_soft(seed):
    """A huge τ_norm leaves each other-modality candidate the weight 1 beside exp(cos/0.01) of the positive."""
    of = case(seed)
    of.states_RD[QUERIES : 2 * QUERIES] += 9 * of.states_RD[:QUERIES]  # positives near their queries
    mac, _ = measured(of, Objective("mac", 1e6, hard_temperature=0.01, hard_decay=0.0))
    mamcl, _ = measured(of, Objective("mamcl", 0.01))
    assert mac.item() == pytest.approx(mamcl.item(), abs=1e-3)


def test_the_positive_always_has_the_hard_temperature():
    modality_C, positive_Q = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 0])
    tau_QC = mac_tau(same_modality(positive_Q, modality_C), 0.03, 0.018)
    assert tau_QC[torch.arange(2), positive_Q].tolist() == pytest.approx([0.018, 0.018])
    assert tau_QC[0, 0].item() == pytest.approx(0.03)


def test_the_hard_temperature_falls_as_published():
    expected = {0.0: 0.030, 0.10: 0.027, 0.25: 0.023, 0.5: 0.018, 0.9: 0.018, 1.0: 0.018}
    assert {progress: tau_hard_at(progress, 0.03, 0.5) for progress in expected} == expected
    assert len({tau_hard_at(step / 1000, 0.03, 0.5) for step in range(1000)}) == 13  # a staircase


def test_the_hard_temperature_s_schedule_can_be_set():
    objective = Objective("mac", 0.05, hard_temperature=0.04, hard_decay=1.0, hard_until=0.25)
    assert objective.tau_hard(0) == 0.04
    assert objective.tau_hard(0.25) == objective.tau_hard(1.0) == round(0.04 * math.exp(-0.5), 3)
    assert Objective("mac", 0.05, hard_decay=0.0).tau_hard(0.7) == 0.05


def test_known_positives_their_copies_and_empty_places_are_masked_and_the_own_positive_is_not():
    candidate_C = torch.tensor([10, 11, 12, 10, 13, 14, NOTHING])
    content_C = torch.tensor([1, 2, 3, 1, 1, 3, NOTHING])
    positives = [torch.tensor([10, 12]), torch.tensor([11])]
    contents = [torch.tensor([1, 3]), torch.tensor([2])]
    masked_QC = no_negatives(positives, contents, candidate_C, content_C, torch.tensor([0, 1]))
    # Query 0: 2 is another positive, 3 the same candidate again, 4 and 5 have the content of its positives.
    assert masked_QC[0].tolist() == [False, False, True, True, True, True, True]
    assert masked_QC[1].tolist() == [False] * 6 + [True]


def test_a_masked_candidate_gets_no_gradient():
    cosines = torch.zeros(1, 3, requires_grad=True)
    softmax_loss(cosines, torch.tensor(0.1), torch.tensor([0]), torch.tensor([[False, True, False]])).backward()
    assert cosines.grad[0, 1] == 0 and cosines.grad[0, 2] > 0 > cosines.grad[0, 0]


def test_a_batch_of_duplicates_has_nothing_to_learn_and_no_nan():
    of = case(0, negatives=0)
    of.states_RD = np.ones((2 * QUERIES, DIM), np.float32)
    of.pairs.candidate_hash[:], of.pairs.content_hash[:] = 1, 100
    of.pairs.positives, of.pairs.contents = [np.array([1])] * QUERIES, [np.array([100])] * QUERIES
    for loss in ("mac", "infonce", "mamcl"):
        assert measured(of, Objective(loss, 0.05))[0].item() == 0


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.0)
