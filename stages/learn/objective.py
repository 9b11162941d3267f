"""What a training step minimises: from one rank's states to one scalar, with all ranks' candidates as negatives.

Shapes: B queries of this rank, R rows of this rank (queries first, their positives, then hard negatives), S places for
candidates of this rank, C candidates of all ranks (world · S), D values of a vector.

This is the one seam between the model and the losses: whoever brings states, in one pass or in cached chunks, gets the
scalar to minimise. Hard negatives are candidates of every query of every rank, as in-batch ones are. Ranks may have
different numbers of them; each fills its S places with zeros that are masked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stages.data.keys import NOTHING
from stages.learn.collectives import gather, rank
from stages.learn.losses import (
    Temperature,
    cosines,
    feature_loss,
    mac_tau,
    no_negatives,
    relational_loss,
    same_modality,
    similarity_loss,
    softmax_loss,
)
from stages.learn.sampling import Pairs
from stages.learn.schedules import tau_hard_at
from stages.model.inputs import Batch


@dataclass(frozen=True)
class Objective:
    """What a step minimises: contrastive_weight * softmax + feature_weight * distance to the teacher.

    Attributes:
        loss: `mac`, `infonce`, `mamcl`, `learnable` or `mac_learnable`; see `stages.learn.losses`.
        temperature: τ of InfoNCE and MAMCL, τ_norm of MAC-Loss, where a learnable τ or τ_norm starts.
        hard_temperature: where τ_hard starts; 0 is `temperature`, as published.
        hard_decay: r of τ_hard's schedule.
        hard_until: share of training after which τ_hard stays.
        contrastive_weight: weight of the softmax; at 0 there is none, and pairs need not belong together.
        feature_loss: the distance to the teacher: `mse`, `cosine`, `relational` or `kl`.
        feature_weight: its weight; 0 needs no teacher.
        feature_temperature: τ of `kl`.
        dims: leading values of a vector that must also serve as a vector, besides all of them (Matryoshka
            representation learning, Kusupati et al. 2022, arXiv 2205.13147). The softmax is the mean over them.
        symmetric: candidates are to find their queries too.
    """

    loss: str
    temperature: float
    hard_temperature: float = 0.0
    hard_decay: float = 0.5
    hard_until: float = 0.5
    contrastive_weight: float = 1.0
    feature_loss: str = "cosine"
    feature_weight: float = 0.0
    feature_temperature: float = 0.05
    dims: tuple[int, ...] = ()
    symmetric: bool = False

    @property
    def hard_start(self) -> float:
        """Where τ_hard starts."""
        return self.hard_temperature or self.temperature

    def tau_hard(self, progress: float) -> float:
        """τ_hard after a share `progress` of training."""
        return tau_hard_at(progress, self.hard_start, self.hard_decay, self.hard_until)

    def learnt_temperatures(self) -> tuple[float, ...]:
        """Where the temperatures start that are trained with the model: none, τ, or τ_norm and τ_hard."""
        starts = {"learnable": (self.temperature,), "mac_learnable": (self.temperature, self.hard_start)}
        return starts.get(self.loss, ())


@dataclass(frozen=True)
class Step:
    """One rank's collated step."""

    pairs: Pairs
    rows: Batch
    """Queries first, positives and hard negatives after them: one forward pass embeds both sides."""
    teacher_RD: torch.Tensor | None
    """Teacher states of the queries and of their positives, [2B, D]."""


class Learner(nn.Module):
    """The encoder beside the loss's own parameters, so that one optimizer and one checkpoint hold both."""

    def __init__(self, encoder: nn.Module, temperature: Temperature):
        super().__init__()
        self.encoder = encoder
        self.temperature = temperature

    def forward(self, *arguments: Any) -> torch.Tensor:
        """The encoder's states."""
        return self.encoder(*arguments)


def learner(encoder: nn.Module, objective: Objective) -> tuple[nn.Module, Temperature | None]:
    """What the optimizer is to hold: the encoder, with temperatures beside it where the objective learns some."""
    if not (starts := objective.learnt_temperatures()):
        return encoder, None
    temperature = Temperature(*starts).to(next(encoder.parameters()).device)
    return Learner(encoder, temperature), temperature


def losses(
    states_RD: torch.Tensor,
    step: Step,
    objective: Objective,
    progress: float,
    temperature: Callable[[], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The objective on one rank's raw states; the scalar to minimise, and its parts for the log.

    Args:
        states_RD: queries first, then positives, then hard negatives.
        step: what is known about these rows.
        objective: what is minimised.
        progress: share of the training that is done.
        temperature: gives the learnable temperatures, where the objective has some.
    """
    states_RD = states_RD.float()
    total = states_RD.new_zeros(())
    parts: dict[str, float] = {}
    if objective.contrastive_weight:
        contrastive, parts = _contrastive(states_RD, step.pairs, objective, progress, temperature)
        total = objective.contrastive_weight * contrastive
    if objective.feature_weight:
        assert step.teacher_RD is not None, "a feature weight needs the teacher's states"
        teacher_RD = step.teacher_RD.to(states_RD.device)
        distance = _to_teacher(objective, states_RD[: len(teacher_RD)], teacher_RD)
        total = total + objective.feature_weight * distance
        parts[f"feature {objective.feature_loss}"] = distance.item()
    return total, parts


def _to_teacher(objective: Objective, student_RD: torch.Tensor, teacher_RD: torch.Tensor) -> torch.Tensor:
    if objective.feature_loss in ("mse", "cosine"):
        return feature_loss(student_RD, teacher_RD, objective.feature_loss)
    rows = (student_RD, teacher_RD, gather(student_RD), gather(teacher_RD))
    if objective.feature_loss == "relational":
        return relational_loss(*rows)
    if objective.feature_loss == "kl":
        return similarity_loss(*rows, objective.feature_temperature)
    raise ValueError(f"the feature loss {objective.feature_loss!r} has no branch here")


def _contrastive(
    states_RD: torch.Tensor,
    pairs: Pairs,
    objective: Objective,
    progress: float,
    temperature: Callable[[], torch.Tensor] | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    device, queries, places = states_RD.device, len(pairs.query_rows), len(pairs.candidate_hash)
    query_BD, candidate_RD = states_RD[:queries], states_RD[queries:]
    candidate_SD = functional.pad(candidate_RD, (0, 0, 0, places - len(candidate_RD)))
    candidate_CD = gather(functional.normalize(candidate_SD, dim=-1))
    modality_C, candidate_C, content_C = (
        gather(torch.from_numpy(known).to(device))
        for known in (pairs.modality, pairs.candidate_hash, pairs.content_hash)
    )
    positive_Q = torch.arange(queries, device=device) + rank() * places
    positives, contents = (
        [torch.from_numpy(one).to(device) for one in known] for known in (pairs.positives, pairs.contents)
    )
    masked_QC = no_negatives(positives, contents, candidate_C, content_C, positive_Q)
    within_QC = same_modality(positive_Q, modality_C)
    parts = {"masked_share": masked_QC[:, candidate_C != NOTHING].float().mean().item()}
    if objective.loss == "mamcl":
        masked_QC = masked_QC | ~within_QC
    if objective.loss == "mac":
        parts["tau_hard"] = objective.tau_hard(progress)
        tau_QC = mac_tau(within_QC, objective.temperature, parts["tau_hard"])
    elif objective.loss == "mac_learnable":
        assert temperature is not None
        tau_norm, tau_hard = temperature()
        parts |= {"tau_hard": tau_hard.item(), "tau_norm": tau_norm.item()}
        tau_QC = mac_tau(within_QC, tau_norm, tau_hard)
    elif objective.loss == "learnable":
        assert temperature is not None
        tau_QC = temperature().squeeze(0)
        parts["tau"] = tau_QC.item()
    elif objective.loss in ("infonce", "mamcl"):
        tau_QC = torch.tensor(objective.temperature, device=device)
    else:
        raise ValueError(f"the loss {objective.loss!r} has no branch here")
    values = []
    for dim in (*objective.dims, states_RD.shape[1]):
        similarity_QC = cosines(query_BD[:, :dim], candidate_CD[:, :dim])
        values.append(softmax_loss(similarity_QC, tau_QC, positive_Q, masked_QC, objective.symmetric))
        if objective.dims:
            parts[f"contrastive {dim}d"] = values[-1].item()
    correct = similarity_QC.masked_fill(masked_QC, -2).argmax(1) == positive_Q
    contrastive = torch.stack(values).mean()
    return contrastive, parts | {"contrastive": contrastive.item(), "in_batch_hit@1": correct.float().mean().item()}
