"""The rotation that turns a teacher's vectors towards a student's, on made-up clouds of vectors."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages.learn.turning import Crossed, find_rotation, mean_cosine, rotation, turned
from tests.support import in_ranks


def cloud(rows: int = 400, dim: int = 12, seed: int = 0) -> torch.Tensor:
    """Vectors that vary more in some directions than in others, around a point that is not the origin."""
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim))).float()
    return drawn * torch.linspace(3, 0.5, dim) + torch.linspace(-2, 2, dim)


def orthogonal(dim: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]).float()


def crossed(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    sums = Crossed()
    for start in range(0, len(teacher), 64):  # step by step
        sums.add(teacher[start : start + 64], student[start : start + 64])
    return sums.covariance()


def test_a_known_rotation_is_found_and_keeps_what_lies_beside_what():
    student, turn = cloud(), orthogonal(12)
    teacher = student @ turn.T
    found = rotation(crossed(teacher, student))
    assert (found - turn).abs().max() < 1e-5
    assert (found @ found.T - torch.eye(12)).abs().max() < 1e-6
    before, after = (functional.normalize(rows, dim=-1) for rows in (teacher, teacher @ found))
    assert (before @ before.T - after @ after.T).abs().max() < 1e-5
    assert mean_cosine(teacher, student) < 0.5 and mean_cosine(teacher @ found, student) > 0.99999


def test_means_do_not_count():
    """All vectors of a language model share one large direction, and those of a cut one share another."""
    spread, turn = cloud() - cloud().mean(0), orthogonal(12)
    teacher, student = spread @ turn.T + 6 * turn[:, 0], spread + 6 * torch.eye(12)[3]
    units = [functional.normalize(rows, dim=-1) for rows in (teacher, student)]
    found, with_means = rotation(crossed(teacher, student)), rotation(units[0].T @ units[1])
    error, worse = ((spread @ turn.T @ one - spread).norm() / spread.norm() for one in (found, with_means))
    assert error < 0.1 and worse > 0.5


def test_it_is_the_nearest_of_all_rotations_in_float64():
    teacher, student = cloud(seed=2), cloud(seed=3) @ orthogonal(12, 4)
    cross = crossed(teacher, student).double()
    left, _, right = np.linalg.svd(cross.numpy())
    found = rotation(cross)
    assert np.abs(found.numpy() - left @ right).max() < 1e-6
    best = (found.double() * cross).sum()
    assert all((orthogonal(12, seed).double() * cross).sum() < best for seed in range(20))


@pytest.mark.parametrize("width", [5, 20])
def test_a_teacher_of_another_width_is_turned_into_the_students(width):
    teacher, student = cloud(dim=width), cloud()
    found = rotation(crossed(teacher, student))
    assert found.shape == (width, 12)
    narrow = found @ found.T if width < 12 else found.T @ found
    assert (narrow - torch.eye(min(width, 12))).abs().max() < 1e-5
    if width < 12:  # nothing is lost
        before, after = (functional.normalize(rows, dim=-1) for rows in (teacher, teacher @ found))
        assert (before @ before.T - after @ after.T).abs().max() < 1e-5


def test_enough_steps_are_read_for_the_width_and_the_teacher_is_turned_by_them():
    student, turn, asked = cloud(), orthogonal(12), []

    def step(number: int) -> slice:
        asked.append(number)
        return slice(8 * number, 8 * number + 8)

    found = find_rotation(lambda rows: (student @ turn.T)[rows], lambda rows: student[rows], step, 8)
    assert asked == [0, 1, 2, 3, 4]  # 3 × 12 rows in steps of 8
    assert found.after > 0.9999 > 0.5 > found.before
    follow = turned(lambda rows: (student @ turn.T)[rows], found.rotation)
    assert mean_cosine(follow(slice(300, 400)), student[300:400]) > 0.9999


def test_two_ranks_find_what_one_finds(tmp_path):
    results = []
    for ranks in (1, 2):
        result = tmp_path / f"{ranks}.json"
        in_ranks(ranks, "tests.turning_world", {"result": str(result)})
        results.append(np.array(json.loads(result.read_text())))
    assert np.abs(results[0] - results[1]).max() < 1e-5
