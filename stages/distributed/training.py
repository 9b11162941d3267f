"""Ray Train around the loop: the same job trains the tiny backbone, the distilled student and the final student.

The run's name holds the artifact's key, so a rerun of the same key resumes from its last checkpoint and a changed key
can never pick up stale state. Every checkpoint holds DeepSpeed's state; the last one also holds the weights in the
Hugging Face layout, written by rank 0, which is how they reach the driver from any node.
"""

import logging
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contract.context import Artifact, Context, StageError
from stages.contract.params import Cluster

WEIGHTS = "weights"
CPU_ONLY = {
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",  # DeepSpeed compiles Muon at every first step, which takes longer than it ever saves
}


@dataclass(frozen=True)
class LiveTeacher:
    """The backbone up to the layer that teaches, run in every step."""

    model: Path
    layer: int
    normed: bool
    before_mlp: bool = False


@dataclass(frozen=True)
class TrainingJob:
    """What a training process needs to know; picklable.

    Attributes:
        model: a model directory that the process can read.
        layers: decoder layers to keep, None for all.
        ingest: the ingest artifact.
        features: the features artifact, when there is a teacher.
        objective: `stages.learn.objective.Objective`.
        settings: `stages.learn.engine.Optimisation`.
        seed: order of the samples.
        vary_instructions: draw an instruction for each use.
        smallest_task: samples of an epoch that every task of a data set has at least, by repetition.
        repeat_positives: times that a query comes in an epoch at most, once for each of its positives.
        sub_batch: queries of one task that stand together in a batch; 0 mixes them freely.
        train_vision: train the vision tower too.
        precision: fp32 or bf16.
        threads: torch threads of a process on CPU.
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints.
        run: the tracker's picklable handle.
        label: what log lines call the job.
        mined: the table of mined hard negatives (`stages.mining.mine.Mined`), where there is one.
        live: the teacher, where it is run and not looked up.
        hard_negatives: hard negatives of a query in each of its steps.
        least_crop: share of an image's area that its random crops keep at least; 1 shows all whole.
        drop_words: share of the words of a query of text alone that a step leaves out.
        mirror: show every other image mirrored.
        lora: the adapters to train in the place of the whole decoder.
    """

    model: Path
    layers: int | None
    ingest: Artifact
    features: Artifact | None
    objective: Any
    settings: Any
    seed: int
    vary_instructions: bool
    smallest_task: int
    repeat_positives: int
    train_vision: bool
    precision: str
    threads: int
    log_every: int
    checkpoint_every: int
    run: Any
    label: str
    mined: Any = None
    live: LiveTeacher | None = None
    hard_negatives: int = 0
    sub_batch: int = 0
    least_crop: float = 1.0
    drop_words: float = 0.0
    mirror: bool = False
    lora: Any = None


def run_training(context: Context, job: TrainingJob) -> tuple[Path, dict[str, float]]:
    """Trains with Ray Train; returns a local directory with the trained weights, and the last measures.

    Raises:
        StageError: the training failed more often than `cluster.max_failures` allows.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = context.cluster
    gpus = cluster.gpus_per_worker
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers, use_gpu=bool(gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            # ZeRO's optimizer state can't be read by another number of ranks or at another stage.
            name=f"{context.output.stage}-{context.output.key}-{cluster.workers}x{cluster.zero_stage}",
            storage_path=context.output.work_uri,
            storage_filesystem=context.output.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),  # the last may not have arrived whole
            worker_runtime_env={"env_vars": {} if gpus else CPU_ONLY},
        ),
    )
    try:
        with interrupts_kept():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise StageError(f"training failed: {_root_cause(error)}") from error
    if result.error is not None:
        raise StageError(f"training failed: {_root_cause(result.error)}")
    directory = context.output.work / "trained"
    result.checkpoint.to_directory(str(directory))
    return directory / WEIGHTS, dict(result.metrics or {})


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Gives Ctrl-C back its meaning after the block.

    Ray Train 2.60 takes SIGINT over for a training and keeps it for good: later, Ctrl-C would ask a controller that is
    gone, and where Ray was shut down, wait minutes for whatever cluster last ran on this machine.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost worker error: what a person needs first."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(cause).__name__


def train_worker(config: dict[str, Any]) -> None:
    """The training process of one rank."""
    import ray.train
    import torch

    quiet_libraries()
    from stages.learn import loop
    from stages.learn.collectives import rank, world_size
    from stages.learn.engine import full_weights
    from stages.learn.sampling import PairSampler
    from stages.model.encoder import Encoder
    from stages.model.lora import add_adapters

    job: TrainingJob = config["job"]
    cuda = torch.cuda.is_available() and ray.train.get_context().get_local_world_size() <= torch.cuda.device_count()
    if not cuda:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device = f"cuda:{torch.cuda.current_device()}" if cuda else "cpu"
    encoder = Encoder.load(job.model, job.layers, job.precision, device).train()
    if not job.train_vision:
        encoder.freeze_vision()
    if job.lora is not None:
        add_adapters(encoder, job.lora)
    sampler = PairSampler(
        job.ingest,
        batch=job.settings.batch_size,
        world=world_size(),
        rank=rank(),
        seed=job.seed,
        vary_instructions=job.vary_instructions,
        smallest_task=job.smallest_task,
        repeat_positives=job.repeat_positives,
        sub_batch=job.sub_batch,
        mined=job.mined,
        hard_negatives=job.hard_negatives,
        least_crop=job.least_crop,
        drop_words=job.drop_words,
        mirror=job.mirror,
    )
    if len(sampler) < job.settings.batch_size:
        raise ValueError(
            f"{len(sampler)} training queries are fewer than a batch of {job.settings.batch_size}: "
            "lower batch_size or give more data"
        )
    latest: dict[str, float] = {}

    def on_log(step: int, measures: dict[str, float]) -> None:
        latest.clear()
        latest.update(measures, step=step)
        if rank() == 0:
            job.run.metrics(measures, step)
            # Not print(): Ray Train patches it to write every line a second time.
            sys.stderr.write(progress_line(job.label, step, job.settings, measures) + "\n")
            sys.stderr.flush()

    def on_checkpoint(step: int, engine: Any) -> None:
        directory = tempfile.mkdtemp(prefix="puma-checkpoint-")  # Ray deletes it when it has arrived
        engine.save_checkpoint(directory, client_state={"step": step})
        if step == job.settings.steps:
            weights = full_weights(engine)
            if rank() == 0:
                save_weights(encoder, weights, job.lora, Path(directory) / WEIGHTS)
        ray.train.report(
            dict(latest),
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # training goes on while it is stored
            delete_local_checkpoint_after_upload=True,
        )

    teacher, compared = None, bool(job.objective.feature_weights)
    if compared and job.features is not None:
        teacher = loop.cached_teacher(FeatureTable(job.features, "query"), FeatureTable(job.features, "candidate"))
    elif compared and job.live is not None:
        whole = Encoder.load(job.live.model, job.live.layer, job.precision, device)
        teacher = loop.live_teacher(whole, job.live.normed, job.live.before_mlp, job.settings.chunk)
    resume = ray.train.get_checkpoint()
    arguments = {
        "teacher": teacher,
        "log_every": job.log_every,
        "checkpoint_every": job.checkpoint_every,
        "on_log": on_log,
        "on_checkpoint": on_checkpoint,
    }
    if resume is None:
        loop.fit(encoder, sampler, job.objective, job.settings, **arguments)
    else:
        with resume.as_directory() as directory:
            if rank() == 0:
                sys.stderr.write(f"{job.label}: goes on from {Path(resume.path).name}\n")
            loop.fit(encoder, sampler, job.objective, job.settings, resume=Path(directory), **arguments)


class FeatureTable:
    """id → teacher state of one side, memory-mapped."""

    def __init__(self, features: Artifact, side: str):
        from stages.data.tables import MappedTable

        self.table = MappedTable.open(features, "features", "id", where={"side": side})

    def __getitem__(self, identity: str) -> Any:
        import numpy as np

        return np.asarray(self.table.row(self.table.find(identity))["vector"], np.float32)


def save_weights(encoder: Any, weights: Any, lora: Any, directory: Path) -> None:
    """Writes the backbone's trained weights as a stock `ForConditionalGeneration` checkpoint.

    Args:
        encoder: gives the configuration, and the vision tower where that was frozen.
        weights: the state dict of the trained module: the encoder's, alone or beside a learnt temperature.
        lora: the adapters to merge, None where there are none.
        directory: where to write.
    """
    from stages.export.checkpoint import save_backbone
    from stages.model.lora import merged

    backbone = backbone_weights(encoder, weights)
    save_backbone(encoder.backbone.config, merged(backbone, lora) if lora else backbone, directory)


def backbone_weights(encoder: Any, weights: Any) -> dict[str, Any]:
    """The backbone's part of a trained module's state dict, under the backbone's own names, frozen vision included."""
    everything = {**weights, **encoder.vision_weights()}
    return {name.partition("backbone.")[2]: tensor for name, tensor in everything.items() if "backbone." in name}


def progress_line(label: str, step: int, settings: Any, measures: dict[str, float]) -> str:
    """One line of progress: `train 120/300 loss 1.234 hit@1 0.71 τ 0.023 lr 3.0e-04 210 pairs/s, 0:52 left`."""
    speed = measures["pairs_per_second"]
    left = round((settings.steps - step) * settings.batch_size / speed)
    parts = [f"{label} {step}/{settings.steps}", f"loss {measures['loss']:.3f}"]
    parts.append(f"hit@1 {measures['in_batch_hit@1']:.2f}")
    parts += [f"{name} {value:.3f}" for name, value in measures.items() if name.startswith("feature ")]
    parts += [f"τ {measures[name]:.3f}" for name in ("tau_hard", "tau") if name in measures]
    parts.append(f"lr {measures['learning_rate']:.1e}")
    return " ".join([*parts, f"{speed:.0f} pairs/s, {left // 60}:{left % 60:02d} left"])


def quiet_libraries() -> None:
    """DeepSpeed and transformers log every detail of every start; warnings and errors are what a user needs."""
    import transformers

    # DeepSpeed calls a collective that torch has renamed, at every start.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("deepspeed").setLevel(logging.WARNING)


def optimisation(params: Any, cluster: Cluster) -> Any:
    """The `Optimisation` of a section with steps, batch_size and the optimizer's fields."""
    from stages.learn.engine import Optimisation

    fields = ("steps", "batch_size", "learning_rate", "warmup", "weight_decay", "clip", "muon_rate", "chunk")
    chosen = {name: getattr(params, name) for name in fields}
    chosen["first_layer_rate"] = getattr(params, "first_layer_rate", 1.0)
    return Optimisation(**chosen, zero_stage=cluster.zero_stage, bf16=cluster.chosen_precision() == "bf16")
