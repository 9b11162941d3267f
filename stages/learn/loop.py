"""The training loop: sample, embed both sides, gather, loss, step. One process runs it for each rank.

Shapes: B pairs of this rank, R rows of this rank (queries and candidates), D values of a vector.

It knows neither Ray nor MLflow: what happens at log and checkpoint steps is handed in. The next step is sampled and
collated while the current one computes.
"""

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stages.contract.params import Cluster
from stages.learn.collectives import rank, total, world_size
from stages.learn.engine import load_state, start_engine, weights_are_finite
from stages.learn.gradcache import Loss, backward, needs_images
from stages.learn.objective import Objective, Step, learner, losses
from stages.learn.sampling import Pairs, PairSampler
from stages.learn.settings import Training
from stages.model.encoder import Encoder
from stages.model.inputs import Batch, prefetch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Teacher = Callable[[Pairs], torch.Tensor]
"""The teacher's states of a step's queries and their positives, [2B, D]: looked up or computed."""


class Diverged(Exception):
    """A training whose numbers are not finite any more; the message names the step and what is not. Every rank has it.

    Nothing that is not finite was saved: the last checkpoint is from before.
    """


def fit(
    encoder: Encoder,
    sampler: PairSampler,
    objective: Objective,
    settings: Training,
    cluster: Cluster,
    *,
    teacher: Teacher | None = None,
    resume: Path | None = None,
    on_log: Callable[[int, dict[str, float]], None],
    on_checkpoint: Callable[[int, "DeepSpeedEngine"], None],
) -> "DeepSpeedEngine":
    """Trains the encoder for `settings.steps` steps and returns the engine.

    Args:
        encoder: its parameters with `requires_grad` are trained.
        sampler: the pairs of each step.
        objective: what is minimised.
        settings: batch, optimizer and schedule.
        cluster: precision, ZeRO stage, and how often `on_log` and `on_checkpoint` are called.
        teacher: needed where the objective has a feature weight.
        resume: a directory written by `save_state`; training goes on at the step that it names.
        on_log: receives the step and its measures, on every rank.
        on_checkpoint: receives the step and the engine, on every rank; also after the last step.

    Raises:
        Diverged: the loss, or a weight that was to be saved, is not finite.
    """
    module, temperature = learner(encoder, objective)
    engine = start_engine(module, settings, cluster, world_size())
    start = 0
    if resume is not None:
        start = load_state(engine, resume)
    clock, seen, tokens = time.perf_counter(), 0, 0
    steps = range(start, settings.steps)
    upcoming = prefetch(partial(prepare, encoder, sampler, teacher, settings.chunk), steps)
    for step, current in zip(steps, upcoming, strict=True):
        seed_step(sampler.seed, step)
        cached = settings.chunk > 0
        loss_of = partial(
            losses, step=current, objective=objective, progress=step / settings.steps, temperature=temperature
        )
        try:
            measures = train_step(engine, encoder, current.rows, loss_of, cached=cached)
        except Diverged as error:
            raise Diverged(f"step {step + 1} of {settings.steps}: {error}") from error
        seen += settings.batch_size
        tokens += world_size() * sum(chunk.tokens for chunk in current.rows.chunks)
        done = step + 1
        if done % cluster.log_every == 0 or done == settings.steps:
            measures |= pace(engine, seen / (time.perf_counter() - clock)) | {"tokens_per_pair": tokens / seen}
            clock, seen, tokens = time.perf_counter(), 0, 0
            on_log(done, measures)
        if done % cluster.checkpoint_every == 0 or done == settings.steps:
            if not weights_are_finite(engine):
                raise Diverged(f"step {done} of {settings.steps}: weights are not finite")
            on_checkpoint(done, engine)
    return engine


def seed_step(seed: int, step: int) -> None:
    """Makes dropout a function of (seed, step, rank), so that a resumed run draws what it would have drawn."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))


def prepare(encoder: Encoder, sampler: PairSampler, teacher: Teacher | None, chunk: int, step: int) -> Step:
    """Samples one rank's step and collates it in chunks of at most `chunk` rows."""
    pairs = sampler.pairs(step)
    rows = pairs.query_rows + pairs.candidate_rows + pairs.negative_rows
    return Step(
        pairs=pairs,
        rows=encoder.collator(rows, chunk, needs_images=needs_images(encoder)),
        teacher_RD=teacher(pairs) if teacher else None,
    )


def train_step(
    engine: "DeepSpeedEngine", encoder: Encoder, rows: Batch, loss_of: Loss, *, cached: bool
) -> dict[str, float]:
    """One optimizer step, by GradCache where `cached`; returns its measures.

    Negatives are all ranks' candidates, with gradient. Each rank's loss is the mean over its own queries, and
    DeepSpeed averages gradients over ranks, so the update is that of the mean over the global batch.

    Raises:
        Diverged: the loss of a rank is not finite; no rank has made the step.
    """
    loss, parts = backward(engine, encoder, rows, loss_of, cached=cached)
    if not math.isfinite(total(torch.tensor(loss, device=engine.device)).item()):
        raise Diverged("the loss is not finite")
    rates = learning_rates(engine.optimizer)
    engine.step()
    return {"loss": loss, **rates, **parts}


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """AdamW's highest rate (the first decoder layer may have a lower one), and Muon's where it trains matrices."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = "muon_rate" if group.get("use_muon") else "learning_rate"
        rates[name] = max(rates.get(name, 0.0), group["lr"])
    return rates


def pace(engine: "DeepSpeedEngine", pairs_per_second: float) -> dict[str, float]:
    """Speed, gradient norm and peak memory since the process started."""
    norm = engine.get_global_grad_norm()
    measures = {"pairs_per_second": pairs_per_second}
    if norm is not None and not any(group.get("use_muon") for group in engine.optimizer.param_groups):
        measures["gradient_norm"] = float(norm)
    if engine.device.type == "cuda":
        measures["gpu_memory_gib"] = torch.cuda.max_memory_allocated(engine.device) / 2**30
    measures["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return measures


def cached_teacher(queries: Mapping, candidates: Mapping) -> Teacher:
    """A teacher that looks its states up in two id → vector tables."""

    def look_up(pairs: Pairs) -> torch.Tensor:
        vectors = [queries[identity] for identity in pairs.query_ids]
        vectors += [candidates[identity] for identity in pairs.candidate_ids]
        return torch.stack([torch.as_tensor(vector, dtype=torch.float32) for vector in vectors])

    return look_up


def centred(teacher: Teacher, mean: Sequence[float]) -> Teacher:
    """The teacher with the mean of its states [D] taken off, which all inputs have in common."""
    mean_D = torch.tensor(mean, dtype=torch.float32)

    def read(pairs: Pairs) -> torch.Tensor:
        states_RD = teacher(pairs)
        return states_RD - mean_D.to(states_RD.device)

    return read


def live_teacher(encoder: Encoder, chunk: int = 0) -> Teacher:
    """A teacher that reads each step's rows itself, as the paper does: a second model in memory and in every step.

    Args:
        encoder: the backbone up to the layer that teaches.
        chunk: rows that are on the device at a time; 0 is the whole step.
    """
    encoder.eval()

    @torch.no_grad()
    def read(pairs: Pairs) -> torch.Tensor:
        batch, parts_RD = encoder.collator(pairs.query_rows + pairs.candidate_rows, chunk), []
        for one in batch.chunks:
            parts_RD.append(encoder.states(Batch.of(one.to(encoder.device))).float())
        return torch.cat(parts_RD)[batch.place_B.to(encoder.device)]

    return read
