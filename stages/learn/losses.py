"""The losses: one softmax whose temperatures and masks make the contrastive ones, and the distances to a teacher.

Shapes: Q queries of this rank, C candidates of all ranks, R rows of this rank, A rows of all ranks, D values.

The direction is query → candidate, and where asked for candidate → query beside it. Between a query and a candidate
stand a cosine, a temperature and a mask:

    InfoNCE    one τ for every pair (van den Oord et al. 2018, arXiv 1807.03748)
    MAC-Loss   τ_hard where the query's target modality is the candidate's, τ_norm elsewhere (PUMA, arXiv 2507.08064)
    MAMCL      one τ; candidates of another than the target modality are masked (UNITE, arXiv 2505.19650)
    learnable  one τ, a parameter that is trained with the model (CLIP, Radford et al. 2021, arXiv 2103.00020)
    mac_learnable  MAC-Loss whose two temperatures are such parameters, in place of its schedule (ours)
"""

import math

import torch
from torch import nn
from torch.nn import functional

from stages.data.keys import NOTHING
from stages.learn.collectives import gather, rank


def softmax_loss(
    similarity_QC: torch.Tensor,
    tau_QC: torch.Tensor,
    positive_Q: torch.Tensor,
    masked_QC: torch.Tensor,
    symmetric: bool = False,
) -> torch.Tensor:
    """Mean over queries of -log softmax of the positive's cosine over its temperature; a scalar.

    Args:
        similarity_QC: cosines.
        tau_QC: temperature of each pair, or a scalar tensor.
        positive_Q: the column of each query's positive.
        masked_QC: true where a candidate is no negative of the query; the positive is never masked.
        symmetric: the mean of this and of the other direction, in which a positive is to find its query among the
            queries of all ranks (CLIP, Radford et al. 2021, arXiv 2103.00020). Temperatures and masks stay the pairs'.
    """
    logits_QC = (similarity_QC / tau_QC).masked_fill(masked_QC, -math.inf)
    loss = functional.cross_entropy(logits_QC, positive_Q)
    if not symmetric:
        return loss
    # Candidates of this rank meet the queries of every rank.
    logits_QQ = gather(logits_QC)[:, positive_Q].T
    own_Q = torch.arange(len(positive_Q), device=positive_Q.device) + rank() * len(positive_Q)
    return (loss + functional.cross_entropy(logits_QQ, own_Q)) / 2


def same_modality(positive_Q: torch.Tensor, modality_C: torch.Tensor) -> torch.Tensor:
    """Bool [Q, C]: whether a candidate has the query's target modality, which is that of its positive."""
    return modality_C[positive_Q][:, None] == modality_C[None, :]


def mac_tau(within_QC: torch.Tensor, tau_norm: float | torch.Tensor, tau_hard: float | torch.Tensor) -> torch.Tensor:
    """Temperatures [Q, C] of MAC-Loss: τ_hard within the query's target modality, τ_norm across modalities."""
    return torch.where(within_QC, tau_hard, tau_norm)


class Temperature(nn.Module):
    """Learnable temperatures, each as CLIP has its one: the parameter is log(1/τ), and 1/τ stays below 100.

    CLIP cuts the parameter back after each step. An optimizer that keeps weights of its own, as ZeRO does, would undo
    that, so the value is cut here, and its gradient passes: the parameter always finds its way back.
    """

    LARGEST = math.log(100)

    def __init__(self, *starts: float):
        super().__init__()
        # Of one dimension and not of none: ZeRO-3 partitions it, and weight decay leaves it alone.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / start) for start in starts]))

    def forward(self) -> torch.Tensor:
        """The temperatures, in the order of their starts."""
        excess = (self.log_scale - self.LARGEST).clamp(min=0).detach()
        return (excess - self.log_scale).float().exp()


def no_negatives(
    positives: list[torch.Tensor],
    contents: list[torch.Tensor],
    candidate_C: torch.Tensor,
    content_C: torch.Tensor,
    positive_Q: torch.Tensor,
) -> torch.Tensor:
    """Which candidates are no negatives of which query, bool [Q, C]: known positives, their copies, and empty places.

    Masking goes by id, not by equal vectors, which dropout makes differ (sentence-transformers #3260). It holds for
    candidates of every rank, in-batch or hard negatives alike.

    Args:
        positives: for each query the id hashes of all its positives.
        contents: for each query the content hashes of all its positives; equal contents under two ids are one thing.
        candidate_C: id hashes; `NOTHING` in the places that a rank with fewer hard negatives leaves empty.
        content_C: content hashes.
        positive_Q: the column of each query's own positive, which stays.
    """
    known_QC = torch.stack([torch.isin(candidate_C, known) for known in positives])
    copies_QC = torch.stack([torch.isin(content_C, known) for known in contents])
    masked_QC = known_QC | copies_QC | (candidate_C == NOTHING)
    masked_QC[torch.arange(len(positive_Q), device=masked_QC.device), positive_Q] = False
    return masked_QC


def feature_loss(student_RD: torch.Tensor, teacher_RD: torch.Tensor, kind: str) -> torch.Tensor:
    """Distance of student states to teacher states, row by row; a scalar.

    Args:
        student_RD: states after the final norm.
        teacher_RD: the teacher's states, after its final norm as well.
        kind: `mse` as published (mean over values, on states of any length), or `cosine`, one minus the mean cosine.
    """
    if kind == "mse":
        return functional.mse_loss(student_RD, teacher_RD)
    return 1 - functional.cosine_similarity(student_RD, teacher_RD, dim=-1).mean()


def relational_loss(student_RD: torch.Tensor, teacher_RD: torch.Tensor, student_AD: torch.Tensor,
                    teacher_AD: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Mean squared difference of the student's and the teacher's cosines between rows; a scalar.

    What is kept is how inputs lie to each other and not where they lie, so the teacher's norm, scale and width do not
    matter (similarity-preserving distillation, Tung and Mori 2019, arXiv 1907.09682, on rows of unit length).

    Args:
        student_RD: this rank's rows; student_AD: those of all ranks. Likewise the teacher's.
    """
    return functional.mse_loss(cosines(student_RD, student_AD), cosines(teacher_RD, teacher_AD))


def similarity_loss(student_RD: torch.Tensor, teacher_RD: torch.Tensor, student_AD: torch.Tensor,
                    teacher_AD: torch.Tensor, tau: float) -> torch.Tensor:  # fmt: skip
    """Mean over rows of KL(teacher ‖ student) between softmaxes of the cosines to all other rows; a scalar.

    What is kept is which inputs are neighbours, with the near ones counting most: a soft form of the labels that
    InfoNCE has (SEED, Fang et al. 2021, arXiv 2101.04731; over queries and candidates of a batch, NanoVDR 2026,
    arXiv 2603.12824). The teacher's width does not matter.

    Args:
        student_RD: this rank's rows; student_AD: those of all ranks, as many of each. Likewise the teacher's.
        tau: temperature of both softmaxes.
    """
    count = len(student_RD)
    own_RA = torch.arange(len(student_AD), device=student_RD.device) == (
        torch.arange(count, device=student_RD.device)[:, None] + rank() * count
    )
    student_RA, teacher_RA = (
        (cosines(*rows) / tau).masked_fill(own_RA, -1e4).log_softmax(dim=1)  # finite, for 0 · ∞ is no number
        for rows in ((student_RD, student_AD), (teacher_RD, teacher_AD))
    )
    return functional.kl_div(student_RA, teacher_RA, reduction="batchmean", log_target=True)


def cosines(one_RD: torch.Tensor, other_AD: torch.Tensor) -> torch.Tensor:
    """Cosines [R, A] between two sets of rows."""
    return functional.normalize(one_RD, dim=-1) @ functional.normalize(other_AD, dim=-1).T
