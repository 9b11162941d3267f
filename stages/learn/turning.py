"""Turning the teacher's vectors towards the student's before the student follows them.

Shapes: N rows of all ranks, T values of a teacher's vector, D values of a student's.

A search compares vectors with each other, so it does not matter which way they all point: turned by one rotation, the
teacher finds exactly what it found. To a student that is to reproduce its vectors it matters much. The layers that
were cut off have moved what the kept ones know to other directions, and without a turn the student spends its first
steps on learning which. The rotation that brings two sets of vectors nearest to each other has a closed form
(orthogonal Procrustes: Schönemann 1966, doi 10.1007/BF02289451; as alignment of word vectors, Smith et al. 2017, arXiv
1702.03859). A teacher of another width is turned into the student's: T below D loses nothing, T above D keeps the D
directions that the student's vectors tell most of.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from stages.learn.collectives import total
from stages.learn.sampling import Pairs

Vectors = Callable[[Pairs], torch.Tensor]
"""Vectors of a step's queries and their positives, [2B, T] or [2B, D]."""

ROWS_OF_A_VALUE = 3
"""Rows that a rotation is found by, for each value of the wider vector: fewer leave directions to chance."""


def rotation(cross_TD: torch.Tensor) -> torch.Tensor:
    """The map [T, D] with orthonormal rows or columns that turns the teacher nearest to the student.

    Directions of which the rows tell nothing, where there are fewer different rows than values, are turned as rounding
    has it.

    Args:
        cross_TD: the sum over rows of teacher ⊗ student, of unit vectors whose means are taken off.
    """
    left_TK, _, right_KD = torch.linalg.svd(cross_TD.double(), full_matrices=False)
    return (left_TK @ right_KD).float()


@dataclass(frozen=True)
class Found:
    """A rotation [T, D], and the mean cosine of student and teacher on this rank's first rows before and after it.

    Vectors of different widths have no cosine before.
    """

    rotation: torch.Tensor
    before: float | None
    after: float


class Crossed:
    """Sums over rows, from which the cross-covariance of teacher and student follows; in float64."""

    def __init__(self) -> None:
        self.sums: list[torch.Tensor] = []

    def add(self, teacher_RT: torch.Tensor, student_RD: torch.Tensor) -> None:
        """Adds this rank's rows."""
        teacher_RT, student_RD = (functional.normalize(rows.double(), dim=-1) for rows in (teacher_RT, student_RD))
        count = torch.tensor(float(len(teacher_RT)), dtype=torch.float64, device=teacher_RT.device)
        new = [teacher_RT.T @ student_RD, teacher_RT.sum(0), student_RD.sum(0), count]
        self.sums = [old + one for old, one in zip(self.sums, new, strict=True)] if self.sums else new

    def covariance(self) -> torch.Tensor:
        """[T, D] over the rows of all ranks, which all call it."""
        cross_TD, teacher_T, student_D, count = (total(one) for one in self.sums)
        return cross_TD - teacher_T[:, None] * student_D[None, :] / count


def find_rotation(teacher: Vectors, student: Vectors, pairs: Callable[[int], Pairs], rows: int) -> Found:
    """The rotation by the first steps' rows, which the training meets anyway; all ranks find the same.

    Args:
        teacher: its vectors of a step's pairs.
        student: those of the student before its training.
        pairs: this rank's pairs of a step.
        rows: of one step, over all ranks.
    """
    crossed, first, step = Crossed(), None, 0
    while first is None or step * rows < ROWS_OF_A_VALUE * max(first[0].shape[1], first[1].shape[1]):
        one = pairs(step)
        student_RD = student(one)
        teacher_RT = teacher(one).to(student_RD)
        crossed.add(teacher_RT, student_RD)
        first, step = first or (teacher_RT, student_RD), step + 1
    found_TD = rotation(crossed.covariance()).to(first[1])
    before = mean_cosine(*first) if first[0].shape == first[1].shape else None
    return Found(found_TD.cpu(), before, mean_cosine(first[0] @ found_TD, first[1]))


def mean_cosine(one_RD: torch.Tensor, other_RD: torch.Tensor) -> float:
    """Of two vectors of a row."""
    return functional.cosine_similarity(one_RD, other_RD, dim=-1).mean().item()


def turned(teacher: Vectors, rotation_TD: torch.Tensor) -> Vectors:
    """The teacher, its vectors turned."""

    def read(pairs: Pairs) -> torch.Tensor:
        teacher_RT = teacher(pairs)
        return teacher_RT @ rotation_TD.to(teacher_RT)

    return read
