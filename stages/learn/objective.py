"""What a training step minimises: from one rank's states to one scalar, with all ranks' candidates as negatives.

Shapes: B queries of this rank, R rows of this rank (queries first, candidates after them), C candidates of all ranks,
D values of a vector.

This is the one seam between the model and the losses: whoever brings states, in one pass or in cached chunks, gets the
scalar to minimise.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from stages.learn.collectives import gather, rank
from stages.learn.losses import false_negatives, feature_loss, mac_tau, softmax_loss, tau_hard_at
from stages.learn.sampling import Pairs
from stages.model.inputs import Batch


@dataclass(frozen=True)
class Objective:
    """What a step minimises: contrastive_weight * softmax + feature_weight * feature loss to the teacher.

    Attributes:
        loss: `mac` or `infonce`.
        temperature: τ of InfoNCE, τ_norm of MAC-Loss.
        hard_decay: r of MAC-Loss's schedule.
        contrastive_weight: weight of the softmax.
        feature_weight: weight of the feature loss; 0 needs no teacher.
        feature_loss: `mse` or `cosine`.
    """

    loss: str
    temperature: float
    hard_decay: float = 0.5
    contrastive_weight: float = 1.0
    feature_weight: float = 0.0
    feature_loss: str = "cosine"


@dataclass(frozen=True)
class Step:
    """One rank's collated step."""

    pairs: Pairs
    rows: Batch
    """Queries first and candidates after them: one forward pass embeds both sides."""
    teacher_BD: torch.Tensor | None
    """Teacher states, queries first and candidates after them, [2B, D]."""


def losses(
    states_RD: torch.Tensor, step: Step, objective: Objective, progress: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The objective on one rank's raw states; the scalar to minimise, and its parts for the log."""
    device = states_RD.device
    states_RD = states_RD.float()
    query_BD, candidate_BD = states_RD.chunk(2)
    similarity_QC = functional.normalize(query_BD, dim=-1) @ gather(functional.normalize(candidate_BD, dim=-1)).T
    pairs = step.pairs
    modality_C = gather(torch.from_numpy(pairs.target_modality).to(device))
    candidate_C = gather(torch.from_numpy(pairs.candidate_hash).to(device))
    content_C = gather(torch.from_numpy(pairs.content_hash).to(device))
    positive_Q = torch.arange(len(query_BD), device=device) + rank() * len(query_BD)
    masked_QC = false_negatives(
        [torch.from_numpy(known).to(device) for known in pairs.positive_hashes], candidate_C, content_C, positive_Q
    )
    parts = {"masked_share": masked_QC.float().mean().item()}
    if objective.loss == "mac":
        parts["tau_hard"] = tau_hard_at(progress, objective.temperature, objective.hard_decay)
        tau_QC = mac_tau(modality_C[positive_Q], modality_C, objective.temperature, parts["tau_hard"])
    else:
        tau_QC = torch.tensor(objective.temperature, device=device)
    contrastive = softmax_loss(similarity_QC, tau_QC, positive_Q, masked_QC)
    total = objective.contrastive_weight * contrastive
    correct = similarity_QC.masked_fill(masked_QC, -2).argmax(1) == positive_Q
    parts |= {"contrastive": contrastive.item(), "in_batch_hit@1": correct.float().mean().item()}
    if objective.feature_weight > 0:
        feature = feature_loss(states_RD, step.teacher_BD.to(device), objective.feature_loss)
        total = total + objective.feature_weight * feature
        parts["feature"] = feature.item()
    return total, parts
