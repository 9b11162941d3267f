"""Ray Train around the loop: the same job trains the tiny backbone, the distilled student and the final student.

The run's name holds the artifact's key, so a rerun of the same key resumes from its last checkpoint and a changed key
can never pick up stale state. Every checkpoint holds DeepSpeed's state; the last one also holds the weights in the
Hugging Face layout, written by rank 0, which is how they reach the driver from any node.
"""

import logging
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.context import Artifact, Context, StageError
from stages.params import Cluster

WEIGHTS = "weights"
PREFERRED = ("image", "image,text", "text")  # what a bare text looks for, as in search


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
        train_vision: train the vision tower too.
        precision: fp32 or bf16.
        threads: torch threads of a process on CPU.
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints.
        run: the tracker's picklable handle.
        label: what log lines call the job.
        mined: the table of mined hard negatives (`stages.mine.Mined`), where there is one.
        live: the teacher, where it is run and not looked up.
        hard_negatives: hard negatives of a query in each of its steps.
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
            worker_runtime_env={"env_vars": {} if gpus else {"DS_ACCELERATOR": "cpu"}},
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.base_trainer.TrainingFailedError as error:
        raise StageError(f"training failed: {_root_cause(error)}") from error
    if result.error is not None:
        raise StageError(f"training failed: {_root_cause(result.error)}")
    directory = context.output.work / "trained"
    result.checkpoint.to_directory(str(directory))
    return directory / WEIGHTS, dict(result.metrics or {})


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
        mined=job.mined,
        hard_negatives=job.hard_negatives,
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
        teacher = loop.live_teacher(whole, job.live.normed, job.live.before_mlp)
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
    from stages.model.export import save_backbone
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

    fields = ("steps", "batch_size", "learning_rate", "warmup", "weight_decay", "clip", "chunk")
    chosen = {name: getattr(params, name) for name in fields}
    chosen["first_layer_rate"] = getattr(params, "first_layer_rate", 1.0)
    return Optimisation(**chosen, zero_stage=cluster.zero_stage, bf16=cluster.chosen_precision() == "bf16")


def student_stage(
    context: Context,
    params: Any,
    source: Path,
    layers: int | None,
    objective: Any,
    features: Artifact | None,
    mined: Any = None,
    live: LiveTeacher | None = None,
    hard_negatives: int = 0,
) -> dict[str, Any]:
    """Trains a student with the vision tower frozen and exports it; what `distill` and `train` share.

    Args:
        params: the stage's section: steps, batch_size, seed and the optimizer's fields.
        source: the model directory to start from.
        layers: decoder layers to keep, None for all.
        objective: what is minimised.
        features: teacher vectors, where the objective needs them.
        mined: hard negatives, where some were mined.
        live: the teacher to run in every step, in the place of `features`.
        hard_negatives: hard negatives of a query in each of its steps.

    Returns:
        The last measures, and the student's size.
    """
    from stages.model.lora import Lora

    quiet_libraries()
    check_dims(source, objective.dims)
    job = TrainingJob(
        model=source,
        layers=layers,
        ingest=context.inputs["ingest"],
        features=features,
        objective=objective,
        settings=optimisation(params, context.cluster),
        seed=(context.params.seed if params.seed == -1 else params.seed) + 1,
        vary_instructions=features is None,
        smallest_task=params.smallest_task,
        train_vision=False,
        precision=context.cluster.chosen_precision(),
        threads=context.cluster.threads_each(context.cluster.workers),
        log_every=params.log_every,
        checkpoint_every=params.checkpoint_every,
        run=context.tracker.handle(),
        label=context.output.stage,
        mined=mined,
        live=live,
        hard_negatives=hard_negatives,
        lora=Lora(**params.lora.model_dump()) if params.adapter == "lora" else None,
    )
    if params.steps:
        weights, measures = run_training(context, job)
    else:
        weights, measures = cut_only(context, source, layers), {}
    return {**export_stage(context, weights, source, measures, objective.dims if params.steps else ()), **measures}


def check_dims(source: Path, dims: tuple[int, ...]) -> None:
    """Raises StageError where a vector of the model has no such leading dimensions."""
    from stages.model.prune import pruned_config

    dim = pruned_config(source, None).text_config.hidden_size
    if dims and not 1 <= dims[0] <= dims[-1] < dim:
        raise StageError(
            f"train.matryoshka={list(dims)} does not fit vectors of {dim} values; choose from 1 to {dim - 1}"
        )


def cut_only(context: Context, source: Path, layers: int | None) -> Path:
    """The weights of the first `layers` layers as they are, for a stage of no steps."""
    from stages.model.encoder import Encoder
    from stages.model.export import save_backbone

    backbone = Encoder.load(source, layers, context.cluster.chosen_precision()).backbone
    directory = context.output.work / WEIGHTS
    save_backbone(backbone.config, backbone.state_dict(), directory)
    return directory


def export_stage(
    context: Context, weights: Path, source: Path, measures: dict[str, Any], dims: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Builds the model directory, writes the card and the parity report, uploads; returns the student's size."""
    from stages.data.instructions import Instructions
    from stages.model.card import write_card
    from stages.model.export import export_student
    from stages.model.parity import check_parity
    from stages.reference import pyfunc_vectors

    directory = context.output.work / "model"
    shutil.rmtree(directory, ignore_errors=True)  # a refused export must not mix with the next one
    export_student(weights, source, directory, query_prompts(Instructions.load(context.inputs["ingest"])), dims)
    # Only what gets registered goes through loaders that cost a process or MLflow; a student in between does not.
    final = context.output.stage == "train"
    more = {"MLflow pyfunc": pyfunc_vectors} if final else {}
    report, size = check_parity(weights, source, directory, more, stock=final)
    write_card(directory, context.output.stage, size, report, measures, context.params)
    context.output.write_json("parity.json", report)
    context.output.upload(directory, "model")
    return size


def query_prompts(instructions: Any) -> dict[str, str]:
    """Prompts by name for sentence-transformers: one for each task, and `query`, which a bare text is asked with."""
    prompts = {
        f"{row['dataset']}: {row['query_modality']} → {row['target_modality']}": row["prompts"][0] + "\n"
        for row in instructions.to_json()
        if row["prompts"]
    }
    told = (instructions.any("text", target) for target in PREFERRED)
    default = next((one for one in told if one), None)
    return {**prompts, **({"query": f"{default}\n"} if default else {})}
