"""A student from start to end, for `distill` and `train`: train it with frozen vision, export it, check the export.

How the training runs is written in `stages.distributed.training`; what the exported directory holds, in
`stages.export.checkpoint`. Export and check run where models run, one model in memory at a time: in fp32 that of 7B
takes 16 GB, which a head need not have.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import Context, StageError, Where
from stages.data.modalities import PREFERRED
from stages.distributed.console import quiet_libraries
from stages.distributed.rotation import keep_rotation
from stages.distributed.tasks import fetch_trained, scratch, where_models_run
from stages.distributed.training import WEIGHTS, LiveTeacher, TrainingJob, run_training
from stages.learn.settings import FineTuning
from stages.model import checkpoint

if TYPE_CHECKING:
    from ray.train import Checkpoint

    from stages.contract.context import Artifact
    from stages.learn.objective import Objective
    from stages.model.prune import Layers

STREAMS = {"distill": 1, "train": 2}
"""Added to a stage's seed: with one seed for both, the last stage would meet the batches of the first once more."""


def student_stage(
    context: Context,
    settings: FineTuning,
    origin: "Artifact",
    layers: "Layers",
    objective: "Objective",
    **asked: Any,
) -> dict[str, Any]:
    """Trains a student with the vision tower frozen and exports it; what `distill` and `train` share.

    Args:
        settings: the stage's section.
        origin: holds the model to start from.
        layers: decoder layers to keep: the first so many, or those of these numbers; None for all.
        objective: what is minimised.
        asked: what only one of the stages has: `teacher`, `mined`, `subset` and others of a `TrainingJob`.

    Returns:
        The last measures, and the student's size.
    """
    quiet_libraries()
    described, model = checkpoint.settings(origin), checkpoint.place(origin)
    check_dims(described, objective.dims)
    check_widths(described, objective, settings, asked.get("teacher"))
    trained, measures = None, {}
    if settings.steps:
        seed = (context.params.seed if settings.seed == -1 else settings.seed) + STREAMS[context.output.stage]
        job = TrainingJob.of(
            context, model=model, layers=layers, objective=objective, settings=settings, seed=seed, **asked
        )
        trained, measures = run_training(context, job)
    dims = objective.dims if settings.steps else ()
    known = where_models_run(context, export_stage, trained, model, layers, measures, dims, asked.get("rotation"))
    return {**known, **measures}


def check_dims(source: Path, dims: tuple[int, ...]) -> None:
    """Raises StageError where a vector of the model has no such leading dimensions."""
    from stages.model.prune import pruned_config

    dim = pruned_config(source, None).text_config.hidden_size
    if dims and not 1 <= dims[0] <= dims[-1] < dim:
        raise StageError(
            f"train.matryoshka={list(dims)} does not fit vectors of {dim} values; choose from 1 to {dim - 1}"
        )


def check_widths(source: Path, objective: "Objective", settings: FineTuning, teacher: Any) -> None:
    """Raises StageError where states are to be compared value by value with a teacher's of another width."""
    from stages.model.prune import pruned_config

    compared = objective.feature_weight and objective.feature_loss in ("mse", "cosine")
    cached = teacher is not None and not isinstance(teacher, LiveTeacher)
    if not (cached and settings.steps and compared) or getattr(settings, "turns", False):
        return
    dim, width = pruned_config(source, None).text_config.hidden_size, teacher.read_json("features.json").get("dim")
    if width not in (None, dim):
        raise StageError(
            f"the teacher's vectors have {width} values and the student's {dim}, which {objective.feature_loss} can't"
            " compare without turning them; set turn=true beside it, or feature_loss=kl"
        )


def cut_only(context: Context, source: Path, layers: "Layers", directory: Path) -> Path:
    """The weights of `layers` as they are, for a stage of no steps; written below `directory`, which is returned."""
    from stages.export.checkpoint import save_backbone
    from stages.model.encoder import Encoder

    backbone = Encoder.load(source, layers, context.cluster.chosen_precision()).backbone
    save_backbone(backbone.config, backbone.state_dict(), directory / WEIGHTS)
    return directory


def export_stage(
    context: Context,
    trained: "Checkpoint | None",
    model: Where,
    layers: "Layers",
    measures: dict[str, Any],
    dims: tuple[int, ...],
    rotation: Any,
) -> dict[str, Any]:
    """Builds the model directory, writes the card and the parity report, uploads; returns the student's size.

    Args:
        trained: what the training left; None cuts the model that it would have started from.
        model: the one that it started from.
        layers: of it that were kept.
        measures: the training's last, for the card.
        dims: leading dimensions that serve as vectors too.
        rotation: that of the stage before, where there is one.
    """
    from stages.data.instructions import Instructions
    from stages.export.checkpoint import export_student

    source, kept = model(), layers if isinstance(layers, tuple) else ()
    with scratch(context.output) as here:
        found = fetch_trained(trained, here) if trained else cut_only(context, source, layers, here)
        turned = keep_rotation(context.output, found if trained else None, rotation)
        weights, directory = found / WEIGHTS, here / "model"
        prompts = query_prompts(Instructions.load(context.inputs["ingest"]))
        export_student(weights, source, directory, prompts, dims, kept)
        size = check_export(context, weights, source, directory, measures)
        context.output.upload(directory, "model")
    return {**size, "turned": turned}


def check_export(
    context: Context, weights: Path, source: Path, directory: Path, measures: dict[str, Any]
) -> dict[str, Any]:
    """Compares the export with what was trained, and writes the report and the card; returns the student's size."""
    from stages.export.card import write_card
    from stages.export.mlflow_model import pyfunc_vectors
    from stages.export.parity import check_parity

    # Only what gets registered goes through loaders that cost a process or MLflow; a student in between does not.
    final = context.output.stage == "train" and context.params.train.check_loaders
    more = {"MLflow pyfunc": pyfunc_vectors} if final else {}
    report, size = check_parity(weights, source, directory, more, stock=final)
    write_card(directory, context.output.stage, size, report, measures, context.params)
    context.output.write_json("parity.json", report)
    return size


def query_prompts(instructions: Any) -> dict[str, str]:
    """Prompts by name for sentence-transformers: one for each task, and `query`, which a bare text is asked with."""
    prompts = {
        f"{row['dataset']}: {row['query_modality']} → {row['target_modality']}": row["prompts"][0] + "\n"
        for row in instructions.to_json()
        if row["prompts"]
    }
    default = next(filter(None, (instructions.any("text", target) for target in PREFERRED)), None)
    return {**prompts, **({"query": f"{default}\n"} if default else {})}
