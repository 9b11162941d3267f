"""The contrastive losses: one softmax, and for each loss the temperature that it gives to a query-candidate pair.

Shapes: Q queries of this rank, C candidates of all ranks.

MAC-Loss (PUMA, paper.md §1.4) divides a pair's cosine by τ_hard when the query's target modality is the candidate's
modality and by τ_norm otherwise; InfoNCE gives every pair the same τ. The direction is query → candidate.
"""

import math

import torch
from torch.nn import functional


def softmax_loss(
    similarity_QC: torch.Tensor, tau_QC: torch.Tensor, positive_Q: torch.Tensor, masked_QC: torch.Tensor
) -> torch.Tensor:
    """Mean over queries of -log softmax of the positive's cosine over its temperature; a scalar.

    Args:
        similarity_QC: cosines.
        tau_QC: temperature of each pair, or a scalar tensor.
        positive_Q: the column of each query's positive.
        masked_QC: true where a candidate is no negative of the query (a false negative); the positive is never masked.
    """
    logits_QC = (similarity_QC / tau_QC).masked_fill(masked_QC, -math.inf)
    return functional.cross_entropy(logits_QC, positive_Q)


def mac_tau(
    target_modality_Q: torch.Tensor, modality_C: torch.Tensor, tau_norm: float, tau_hard: float
) -> torch.Tensor:
    """Temperatures [Q, C] of MAC-Loss: τ_hard within the query's target modality, τ_norm across modalities."""
    within_QC = target_modality_Q[:, None] == modality_C[None, :]
    return torch.where(within_QC, tau_hard, tau_norm)


def tau_hard_at(progress: float, tau_norm: float, decay: float) -> float:
    """τ_hard after a share `progress` of training: round(τ_norm · exp(-2 r min(½, t)), 3), a falling staircase.

    With τ_norm 0.03 and r 0.5 it goes from 0.030 to 0.018 by half time and stays (paper.md §1.4).
    """
    return round(tau_norm * math.exp(-2 * decay * min(0.5, progress)), 3)


def false_negatives(
    positives: list[torch.Tensor], candidate_C: torch.Tensor, content_C: torch.Tensor, positive_Q: torch.Tensor
) -> torch.Tensor:
    """Which candidates are no negatives of which query, bool [Q, C]: its other positives, and copies of its positive.

    Masking goes by id, not by equal vectors, which dropout makes differ (sentence-transformers #3260).

    Args:
        positives: for each query the id hashes of all its positives.
        candidate_C: id hashes.
        content_C: hashes of the candidates' contents; equal contents under two ids are one candidate.
        positive_Q: the column of each query's own positive, which stays.
    """
    also_right_QC = torch.stack([torch.isin(candidate_C, known) for known in positives])
    copies_QC = content_C[positive_Q][:, None] == content_C[None, :]
    masked_QC = also_right_QC | copies_QC
    masked_QC[torch.arange(len(positive_Q), device=masked_QC.device), positive_Q] = False
    return masked_QC


def feature_loss(student_BD: torch.Tensor, teacher_BD: torch.Tensor, kind: str) -> torch.Tensor:
    """Distance of student states to teacher states; a scalar.

    Args:
        student_BD: raw states after the final norm.
        teacher_BD: the cached teacher states, raw as well.
        kind: `mse` as published (mean over values), or `cosine`, one minus the mean cosine.
    """
    if kind == "mse":
        return functional.mse_loss(student_BD, teacher_BD)
    return 1 - functional.cosine_similarity(student_BD, teacher_BD, dim=-1).mean()
