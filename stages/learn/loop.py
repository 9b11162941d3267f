"""The training loop: sample, embed both sides, gather, loss, step. One process runs it for each rank.

Shapes: B pairs of this rank, C candidates of all ranks, D values of a vector.

It knows neither Ray nor MLflow: what happens at log and checkpoint steps is handed in. The next step's images are
decoded by one thread while the current step computes.
"""

import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from stages.learn.collectives import gather, rank, world_size
from stages.learn.engine import Optimisation, start_engine
from stages.learn.gradcache import backward, needs_images
from stages.learn.losses import false_negatives, feature_loss, mac_tau, softmax_loss, tau_hard_at
from stages.learn.sampling import Pairs, PairSampler
from stages.model.encoder import Encoder
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


Teacher = Callable[[Pairs], torch.Tensor]
"""The teacher's states of a step's queries and candidates, [2B, D]: looked up or computed."""


def fit(
    encoder: Encoder,
    sampler: PairSampler,
    objective: Objective,
    settings: Optimisation,
    *,
    teacher: Teacher | None = None,
    resume: Path | None = None,
    log_every: int,
    checkpoint_every: int,
    on_log: Callable[[int, dict[str, float]], None],
    on_checkpoint: Callable[[int, Any], None],
) -> Any:
    """Trains the encoder for `settings.steps` steps and returns the engine.

    Args:
        encoder: its parameters with `requires_grad` are trained.
        sampler: the pairs of each step.
        objective: what is minimised.
        settings: optimizer and ZeRO.
        teacher: needed when the objective has a feature weight.
        resume: a directory written by `engine.save_checkpoint`; training goes on at the step that it names.
        log_every: steps between calls of `on_log`.
        checkpoint_every: steps between calls of `on_checkpoint`, which also follows the last step.
        on_log: receives the step and its measures, on every rank.
        on_checkpoint: receives the step and the engine, on every rank.
    """
    engine = start_engine(encoder, settings, world_size())
    start = 0
    if resume is not None:
        _, client_state = engine.load_checkpoint(str(resume))
        start = client_state["step"]
    clock, seen = time.perf_counter(), 0
    with ThreadPoolExecutor(1) as reader:
        read = partial(reader.submit, prepare, encoder, sampler, teacher, settings.chunk)
        upcoming = read(start) if start < settings.steps else None
        for step in range(start, settings.steps):
            current = upcoming.result()
            if step + 1 < settings.steps:
                upcoming = read(step + 1)
            seed_step(sampler.seed, step)
            cached = settings.chunk > 0
            measures = train_step(engine, encoder, current, objective, step / settings.steps, cached=cached)
            seen += settings.batch_size
            done = step + 1
            if done % log_every == 0 or done == settings.steps:
                measures |= pace(engine, seen / (time.perf_counter() - clock))
                clock, seen = time.perf_counter(), 0
                on_log(done, measures)
            if done % checkpoint_every == 0 or done == settings.steps:
                on_checkpoint(done, engine)
    return engine


def seed_step(seed: int, step: int) -> None:
    """Makes dropout a function of (seed, step, rank), so that a resumed run draws what it would have drawn."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))


def prepare(encoder: Encoder, sampler: PairSampler, teacher: Teacher | None, chunk: int, step: int) -> Step:
    """Samples one rank's step and collates it in chunks of at most `chunk` rows."""
    pairs = sampler.pairs(step)
    return Step(
        pairs=pairs,
        rows=encoder.collator(pairs.query_rows + pairs.candidate_rows, chunk, sighted=needs_images(encoder)),
        teacher_BD=teacher(pairs) if teacher else None,
    )


def train_step(
    engine: Any, encoder: Encoder, step: Step, objective: Objective, progress: float, *, cached: bool
) -> dict[str, float]:
    """One optimizer step, by GradCache where `cached`; returns its measures.

    Negatives are all ranks' candidates, with gradient. Each rank's loss is the mean over its own queries, and
    DeepSpeed averages gradients over ranks, so the update is that of the mean over the global batch.
    """

    def loss_of(states_RD: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        queries = len(step.pairs.query_rows)
        return losses(states_RD[:queries], states_RD[queries:], step, objective, progress)

    loss, parts = backward(engine, encoder, step.rows, loss_of, cached=cached)
    learning_rate = engine.get_lr()[0]
    engine.step()
    return {"loss": loss, "learning_rate": learning_rate, **parts}


def losses(
    query_BD: torch.Tensor, candidate_BD: torch.Tensor, step: Step, objective: Objective, progress: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The objective on one rank's raw states; the scalar to minimise, and its parts for the log."""
    device = query_BD.device
    query_BD, candidate_BD = query_BD.float(), candidate_BD.float()
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
        states_BD = torch.cat([query_BD, candidate_BD])
        feature = feature_loss(states_BD, step.teacher_BD.to(device), objective.feature_loss)
        total = total + objective.feature_weight * feature
        parts["feature"] = feature.item()
    return total, parts


def pace(engine: Any, pairs_per_second: float) -> dict[str, float]:
    """Speed, gradient norm and peak memory since the process started."""
    norm = engine.get_global_grad_norm()
    measures = {"pairs_per_second": pairs_per_second}
    if norm is not None:
        measures["gradient_norm"] = float(norm)
    if torch.cuda.is_available():
        measures["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    measures["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return measures


def cached_teacher(queries: Mapping, candidates: Mapping) -> Teacher:
    """A teacher that looks its states up in two id → vector tables."""

    def look_up(pairs: Pairs) -> torch.Tensor:
        vectors = [queries[identity] for identity in pairs.query_ids]
        vectors += [candidates[identity] for identity in pairs.candidate_ids]
        return torch.stack([torch.as_tensor(vector, dtype=torch.float32) for vector in vectors])

    return look_up


def live_teacher(encoder: Encoder, normed: bool) -> Teacher:
    """A teacher that reads each step's rows itself, as the paper does: a second model in memory and in every step.

    Args:
        encoder: the backbone up to the layer that teaches.
        normed: whether its final norm is applied.
    """
    encoder.eval()

    @torch.no_grad()
    def read(pairs: Pairs) -> torch.Tensor:
        rows = encoder.collator(pairs.query_rows + pairs.candidate_rows).to(encoder.device)
        states_BD = encoder.states(rows) if normed else encoder.states_by_layer(rows, normed=False)[-1]
        return states_BD.float()

    return read
