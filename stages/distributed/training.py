"""Ray Train around the loop: the same job trains the tiny backbone, the distilled student and the final student.

The run's name holds the artifact's key, so a rerun of the same key resumes from its last checkpoint and a changed key
can never pick up stale state. Every checkpoint holds DeepSpeed's state without frozen weights, which a resumed run
loads where it began; the last one also holds the weights in the Hugging Face layout, written by rank 0, which is how
they reach the driver from any node.
"""

import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import Artifact, Context, StageError, Where
from stages.contract.params import Cluster
from stages.distributed.console import progress_line, quiet_libraries, room_in, root_cause
from stages.distributed.rotation import ROTATION
from stages.learn.settings import Alignment, FineTuning, Training

if TYPE_CHECKING:
    import numpy as np
    from ray.train import Checkpoint

    from stages.learn.loop import Teacher
    from stages.learn.objective import Objective
    from stages.learn.sampling import PairSampler
    from stages.model.encoder import Encoder
    from stages.model.prune import Layers

LOOKS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
"""How often Ray Train looks after its workers, and so notices that they have ended; every two seconds by itself."""
WEIGHTS = "weights"
SIDES = ("query", "candidate")
CPU_ONLY = {
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",  # DeepSpeed compiles Muon at every first step, which takes longer than it ever saves
}


@dataclass(frozen=True)
class LiveTeacher:
    """The backbone up to the layer that teaches, run in every step; `mean`, where there is one, is taken off."""

    model: Where
    layer: int
    mean: Sequence[float] | None = None


@dataclass(frozen=True)
class TrainingJob:
    """What a training process needs to know; picklable.

    Attributes:
        model: the model directory, for whichever node asks.
        layers: decoder layers to keep: the first so many, or those of these numbers; None for all.
        objective: what is minimised.
        settings: the stage's section; a `FineTuning` leaves the vision tower as it is, and may train adapters alone.
        seed: of samples and dropout.
        ingest: the artifact of ingest, or of other data that is to be learnt from.
        cluster: precision, threads, ZeRO stage, how often to log and to save.
        run: the tracker's picklable handle.
        label: what log lines call the job.
        teacher: the features artifact, from which states are looked up, or what is run in every step; None without.
        mined: the table of mined hard negatives (`stages.mining.mine.Mined`), where there is one.
        hard_negatives: hard negatives of a query in each of its steps.
        states: which of the teacher's states are this training's, see `stages.distributed.lessons`.
        rotation: float32 [T, D] that turns the teacher's states towards the student's (`stages.learn.turning`); None
            where one is to be found before the first step, if the settings ask for it.
        subset: (most, seed) of `stages.data.order.drawn`, where not all samples are to come up.
    """

    model: Where
    layers: "Layers"
    objective: "Objective"
    settings: Training
    seed: int
    ingest: Artifact
    cluster: Cluster
    run: Any
    label: str
    teacher: Artifact | LiveTeacher | None = None
    mined: Any = None
    hard_negatives: int = 0
    states: str = "features"
    rotation: Any = None
    subset: tuple[int, int] | None = None

    @classmethod
    def of(cls, context: Context, **asked: Any) -> "TrainingJob":
        """A job of this stage."""
        place = {"ingest": context.inputs["ingest"], "cluster": context.cluster}
        return cls(**place | asked, run=context.tracker.handle(), label=context.output.stage)

    @property
    def reads_cached_states(self) -> bool:
        """Whether the teacher's states were computed before: then queries keep the instruction they were read with."""
        return not (self.teacher is None or isinstance(self.teacher, LiveTeacher))


def run_training(context: Context, job: TrainingJob) -> tuple["Checkpoint", dict[str, float]]:
    """Trains with Ray Train; returns its last checkpoint, see `tasks.fetch_trained`, and the last measures.

    Raises:
        StageError: the training failed more often than `cluster.max_failures` allows, or its numbers are not finite
            any more, which it would come to again.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = context.cluster
    gpus = cluster.gpus_per_worker
    os.environ.update({name: value for name, value in LOOKS.items() if name not in os.environ})
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": pickle.dumps(job)},  # as it is, Ray's controller would import torch and transformers
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
        raise StageError(f"training failed: {root_cause(error)}") from error
    if result.error is not None:
        raise StageError(f"training failed: {root_cause(result.error)}")
    measures = dict(result.metrics or {})
    if result.return_value:
        kept = f"the checkpoint of step {measures['step']} is kept" if measures else "there is no checkpoint yet"
        raise StageError(f"{result.return_value}; {kept}")
    return result.checkpoint, measures


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


def train_worker(config: dict[str, Any]) -> str | None:
    """What Ray Train calls in each of its processes, with the pickled job."""
    return train_rank(pickle.loads(config["job"]))


def train_rank(job: TrainingJob) -> str | None:
    """The training process of one rank; what it stopped for where that would only happen again.

    What takes long and differs between nodes (models that are fetched, tables that are built, a checkpoint to go on
    from) comes before the ranks' first collective: in one, NCCL waits 30 minutes for the slowest and then gives up. At
    the barrier, which is Ray's, they wait for as long as it takes.
    """
    import ray.train.collective
    import torch

    quiet_libraries()
    from stages.learn import loop

    torch.manual_seed(job.seed)
    device = choose_device(job.cluster)
    encoder, sampler, teacher = load_student(job, device), open_sampler(job), open_teacher(job, device)
    with resumed(job) as checkpoint:
        ray.train.collective.barrier()
        teacher, rotation = turn(job, encoder, sampler, teacher, checkpoint)
        progress = Progress(job, encoder, rotation)
        try:
            loop.fit(
                encoder, sampler, job.objective, job.settings, job.cluster,
                teacher=teacher, resume=checkpoint, on_log=progress.log, on_checkpoint=progress.save,
            )  # fmt: skip
        except loop.Diverged as error:  # raised, Ray Train would start it again
            return f"{error}; lower learning_rate, which is {job.settings.learning_rate:g}"
    return None


@contextmanager
def resumed(job: TrainingJob) -> Iterator[Path | None]:
    """The last checkpoint of this training as a directory of this node; None where it is to begin."""
    import ray.train

    from stages.learn.collectives import rank

    found = ray.train.get_checkpoint()
    if found is None:
        yield None
        return
    if rank() == 0:
        sys.stderr.write(f"{job.label}: goes on from {Path(found.path).name}\n")
    with found.as_directory() as directory:
        yield Path(directory)


def choose_device(cluster: Cluster) -> str:
    """The GPU that Ray gave the process, where it is to have one; else the CPU, with its share of the cores.

    What is visible does not count: a process may see GPUs that it was not given, or of a node's four its own alone.

    Raises:
        StageError: there is no GPU that torch can use.
    """
    import ray.train.torch
    import torch

    if not cluster.gpus_per_worker:
        torch.set_num_threads(cluster.threads_each(cluster.workers))
        return "cpu"
    if not torch.cuda.is_available():
        raise StageError(
            f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}, and torch {torch.__version__} can use no GPU here;"
            " install a torch and a driver that fit it, or set cluster.gpus_per_worker=0"
        )
    device = ray.train.torch.get_device()
    os.environ["LOCAL_RANK"] = str(device.index)  # by which DeepSpeed chooses
    return str(device)


def load_student(job: TrainingJob, device: str) -> "Encoder":
    """The model, with what the job does not train frozen."""
    from stages.model.encoder import Encoder
    from stages.model.lora import add_adapters

    encoder = Encoder.load(job.model(), job.layers, job.cluster.chosen_precision(), device).train()
    if isinstance(job.settings, FineTuning):
        encoder.freeze_vision()
        if job.settings.lora.rank:
            add_adapters(encoder, job.settings.lora)
    return encoder


def open_sampler(job: TrainingJob) -> "PairSampler":
    """The pairs of this rank."""
    from stages.learn.collectives import rank, world_size
    from stages.learn.sampling import PairSampler

    return PairSampler(
        job.ingest,
        job.settings,
        world=world_size(),
        rank=rank(),
        seed=job.seed,
        vary_instructions=not job.reads_cached_states,
        mined=job.mined,
        hard_negatives=job.hard_negatives,
        subset=job.subset,
    )


def open_teacher(job: TrainingJob, device: str) -> "Teacher | None":
    """The teacher, where its states weigh anything."""
    from stages.learn import loop
    from stages.model.encoder import Encoder

    if job.teacher is None or not job.objective.feature_weight:
        return None
    if isinstance(job.teacher, LiveTeacher):
        encoder = Encoder.load(job.teacher.model(), job.teacher.layer, job.cluster.chosen_precision(), device)
        teacher, mean = loop.live_teacher(encoder, job.settings.chunk), job.teacher.mean
    else:
        teacher = loop.cached_teacher(*(FeatureTable(job.teacher, side, job.states) for side in SIDES))
        mean = job.teacher.read_json("features.json").get("mean")
    return loop.centred(teacher, mean) if mean else teacher


def turn(
    job: TrainingJob,
    encoder: "Encoder",
    sampler: "PairSampler",
    teacher: "Teacher | None",
    checkpoint: Path | None,
) -> "tuple[Teacher | None, np.ndarray | None]":
    """The teacher, turned, and the rotation: the checkpoint's, the job's, or one found now where the settings ask.

    A student keeps the directions that it was given, whatever the settings of a later training say.
    """
    import numpy as np
    import torch

    from stages.learn.collectives import rank
    from stages.learn.loop import live_teacher
    from stages.learn.turning import find_rotation, turned

    if teacher is None:
        return None, None
    kept = checkpoint and checkpoint / ROTATION
    known = np.load(kept) if kept and kept.exists() else job.rotation
    if known is not None:
        return turned(teacher, torch.from_numpy(known)), known
    if not (isinstance(job.settings, Alignment) and job.settings.turns):
        return teacher, None
    student = live_teacher(encoder, job.settings.chunk)
    found = find_rotation(teacher, student, sampler.pairs, 2 * job.settings.batch_size)
    encoder.train()
    if rank() == 0:
        before = "" if found.before is None else f"{found.before:.2f} before, "
        sys.stderr.write(f"{job.label}: the teacher is turned, mean cosine {before}{found.after:.2f} after\n")
    return turned(teacher, found.rotation), found.rotation.numpy()


class Progress:
    """What a rank reports of its training: measures to the log and the tracker, checkpoints to Ray Train."""

    def __init__(self, job: TrainingJob, encoder: "Encoder", rotation: "np.ndarray | None" = None):
        self.job, self.encoder, self.rotation = job, encoder, rotation
        self.latest: dict[str, float] = {}

    def log(self, step: int, measures: dict[str, float]) -> None:
        """Logs the measures of a step, from rank 0."""
        from stages.learn.collectives import rank

        self.latest = {**measures, "step": step}
        if rank() == 0:
            self.job.run.metrics(measures, step)
            # Not print(): Ray Train patches it to write every line a second time.
            sys.stderr.write(progress_line(self.job.label, step, self.job.settings, measures) + "\n")
            sys.stderr.flush()

    def save(self, step: int, engine: Any) -> None:
        """Saves a checkpoint with the rotation, where there is one, and the last one with the weights."""
        import numpy as np
        import ray.train

        from stages.learn.collectives import rank
        from stages.learn.engine import full_weights, save_state

        directory = Path(tempfile.mkdtemp(prefix="puma-checkpoint-"))  # Ray deletes it when it has arrived
        with room_in(directory, f"the checkpoint of step {step}"):
            save_state(engine, directory, step)
            if self.rotation is not None and rank() == 0:
                np.save(directory / ROTATION, self.rotation)
            if step == self.job.settings.steps:
                weights = full_weights(engine)
                if rank() == 0:
                    save_weights(self.encoder, weights, self.job.settings, directory / WEIGHTS)
        ray.train.report(
            {**self.latest, "step": step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # training goes on while it is stored
            delete_local_checkpoint_after_upload=True,
        )


class FeatureTable:
    """id → teacher state of one side, memory-mapped."""

    def __init__(self, features: Artifact, side: str, prefix: str = "features"):
        from stages.data.tables import MappedTable

        self.table = MappedTable.open(features, prefix, "id", where={"side": side})

    def __getitem__(self, identity: str) -> Any:
        import numpy as np

        return np.asarray(self.table.row(self.table.find(identity))["vector"], np.float32)


def save_weights(encoder: "Encoder", weights: Any, settings: Training, directory: Path) -> None:
    """Writes the backbone's trained weights as a stock `ForConditionalGeneration` checkpoint.

    Args:
        encoder: gives the configuration, and the vision tower where that was frozen.
        weights: the state dict of the trained module: the encoder's, alone or beside a learnt temperature.
        settings: of the training; its adapters are merged.
        directory: where to write.
    """
    from stages.export.checkpoint import save_backbone
    from stages.model.lora import merged

    stock = backbone_weights(encoder, weights)
    if isinstance(settings, FineTuning):
        stock = merged(stock, settings.lora)
    save_backbone(encoder.backbone.config, stock, directory)


def backbone_weights(encoder: "Encoder", weights: Any) -> dict[str, Any]:
    """The backbone's part of a trained module's state dict, under the backbone's own names, frozen vision included."""
    everything = {**weights, **encoder.vision_weights()}
    return {name.partition("backbone.")[2]: tensor for name, tensor in everything.items() if "backbone." in name}
