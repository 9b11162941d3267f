"""The losses against a float64 reference written from the formulas, without torch's softmax."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.learn.engine import learning_rate_factor
from stages.learn.losses import false_negatives, feature_loss, mac_tau, softmax_loss, tau_hard_at


def reference_loss(query, candidate, tau, positive, masked) -> float:
    """-mean log( exp(s_p/τ_p) / Σ_j exp(s_j/τ_j) ) over unmasked j, in float64 with plain loops."""
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    candidate = candidate / np.linalg.norm(candidate, axis=1, keepdims=True)
    total = 0.0
    for row, own in enumerate(positive):
        terms = [
            math.exp(float(query[row] @ candidate[column]) / tau[row, column])
            for column in range(len(candidate))
            if not masked[row, column]
        ]
        total -= math.log(math.exp(float(query[row] @ candidate[own]) / tau[row, own]) / sum(terms))
    return total / len(positive)


def random_case(seed: int, queries: int = 5, candidates: int = 9, dim: int = 7):
    draw = np.random.default_rng(seed)
    positive = draw.permutation(candidates)[:queries]
    masked = draw.random((queries, candidates)) < 0.2
    masked[np.arange(queries), positive] = False
    modality = draw.integers(0, 3, candidates)
    return draw.normal(size=(queries, dim)), draw.normal(size=(candidates, dim)), positive, masked, modality


def similarity(query, candidate) -> torch.Tensor:
    normalise = torch.nn.functional.normalize
    return normalise(torch.tensor(query), dim=-1) @ normalise(torch.tensor(candidate), dim=-1).T


@given(st.integers(0, 10_000))
def test_mac_loss_equals_the_reference(seed):
    query, candidate, positive, masked, modality = random_case(seed)
    tau = np.where(modality[positive][:, None] == modality[None], 0.02, 0.03)
    ours = softmax_loss(
        similarity(query, candidate),
        mac_tau(torch.tensor(modality[positive]), torch.tensor(modality), 0.03, 0.02),
        torch.tensor(positive),
        torch.tensor(masked),
    )
    # Temperatures are float32: half a unit in their last place moves a logit of 50 by 3e-6.
    assert ours.item() == pytest.approx(reference_loss(query, candidate, tau, positive, masked), rel=1e-6, abs=1e-5)


@given(st.integers(0, 10_000))
def test_infonce_equals_the_reference(seed):
    query, candidate, positive, masked, _ = random_case(seed)
    ours = softmax_loss(similarity(query, candidate), torch.tensor(0.05), torch.tensor(positive), torch.tensor(masked))
    expected = reference_loss(query, candidate, np.full(masked.shape, 0.05), positive, masked)
    assert ours.item() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_mac_loss_of_one_modality_is_infonce_at_the_hard_temperature():
    modality_C = torch.zeros(6, dtype=torch.long)
    assert torch.equal(mac_tau(modality_C[:4], modality_C, 0.03, 0.018), torch.full((4, 6), 0.018))


def test_mac_loss_with_equal_temperatures_is_infonce():
    modality_C = torch.tensor([0, 1, 2, 0])
    assert torch.equal(mac_tau(modality_C, modality_C, 0.03, 0.03), torch.full((4, 4), 0.03))


def test_the_positive_always_has_the_hard_temperature():
    modality_C = torch.tensor([0, 1, 2, 1])
    positive_Q = torch.tensor([2, 0])
    tau_QC = mac_tau(modality_C[positive_Q], modality_C, 0.03, 0.018)
    assert tau_QC[torch.arange(2), positive_Q].tolist() == pytest.approx([0.018, 0.018])


def test_the_hard_temperature_falls_as_published():
    expected = {0.0: 0.030, 0.10: 0.027, 0.25: 0.023, 0.5: 0.018, 0.9: 0.018, 1.0: 0.018}
    assert {progress: tau_hard_at(progress, 0.03, 0.5) for progress in expected} == expected


def test_other_positives_and_copies_are_masked_and_the_own_positive_is_not():
    candidate_C = torch.tensor([10, 11, 12, 10, 13])
    content_C = torch.tensor([1, 2, 3, 1, 1])
    positives = [torch.tensor([10, 12]), torch.tensor([11])]
    masked_QC = false_negatives(positives, candidate_C, content_C, torch.tensor([0, 1]))
    # Query 0: column 2 is another positive, 3 the same candidate again, 4 has the content of its positive.
    assert masked_QC.tolist() == [[False, False, True, True, True], [False, False, False, False, False]]


def test_a_masked_candidate_gets_no_gradient():
    cosines = torch.zeros(1, 3, requires_grad=True)
    softmax_loss(cosines, torch.tensor(0.1), torch.tensor([0]), torch.tensor([[False, True, False]])).backward()
    assert cosines.grad[0, 1] == 0 and cosines.grad[0, 2] > 0 > cosines.grad[0, 0]


def test_feature_losses_equal_their_formulas():
    student, teacher = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    assert feature_loss(student, teacher, "mse").item() == pytest.approx(((student - teacher).numpy() ** 2).mean())
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(student.numpy(), teacher.numpy(), strict=True)
    ]
    assert feature_loss(student, teacher, "cosine").item() == pytest.approx(1 - np.mean(cosines))


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.0)
