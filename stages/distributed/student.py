"""A student from start to end, for `distill` and `train`: train it with frozen vision, export it, check the export.

How the training runs is written in `stages.distributed.training`; what the exported directory holds, in
`stages.export.checkpoint`.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import Context, StageError
from stages.distributed.console import quiet_libraries
from stages.distributed.rotation import keep_rotation
from stages.distributed.training import WEIGHTS, LiveTeacher, TrainingJob, run_training
from stages.learn.settings import FineTuning

if TYPE_CHECKING:
    from stages.learn.objective import Objective
    from stages.model.prune import Layers

PREFERRED = ("image", "image,text", "text")  # what a bare text looks for, as in search
STREAMS = {"distill": 1, "train": 2}
"""Added to a stage's seed: with one seed for both, the last stage would meet the batches of the first once more."""


def student_stage(
    context: Context,
    settings: FineTuning,
    source: Path,
    layers: "Layers",
    objective: "Objective",
    **asked: Any,
) -> dict[str, Any]:
    """Trains a student with the vision tower frozen and exports it; what `distill` and `train` share.

    Args:
        settings: the stage's section.
        source: the model directory to start from.
        layers: decoder layers to keep: the first so many, or those of these numbers; None for all.
        objective: what is minimised.
        asked: what only one of the stages has: `teacher`, `mined`, `subset` and others of a `TrainingJob`.

    Returns:
        The last measures, and the student's size.
    """
    quiet_libraries()
    check_dims(source, objective.dims)
    check_widths(source, objective, settings, asked.get("teacher"))
    if settings.steps:
        seed = (context.params.seed if settings.seed == -1 else settings.seed) + STREAMS[context.output.stage]
        job = TrainingJob.of(
            context, model=source, layers=layers, objective=objective, settings=settings, seed=seed, **asked
        )
        weights, measures = run_training(context, job)
    else:
        weights, measures = cut_only(context, source, layers), {}
    turned = keep_rotation(context.output, weights.parent if settings.steps else None, asked.get("rotation"))
    kept = layers if isinstance(layers, tuple) else ()
    dims = objective.dims if settings.steps else ()
    return {**export_stage(context, weights, source, measures, dims, kept), **measures, "turned": turned}


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


def cut_only(context: Context, source: Path, layers: "Layers") -> Path:
    """The weights of `layers` as they are, for a stage of no steps."""
    from stages.export.checkpoint import save_backbone
    from stages.model.encoder import Encoder

    backbone = Encoder.load(source, layers, context.cluster.chosen_precision()).backbone
    directory = context.output.work / WEIGHTS
    save_backbone(backbone.config, backbone.state_dict(), directory)
    return directory


def export_stage(
    context: Context,
    weights: Path,
    source: Path,
    measures: dict[str, Any],
    dims: tuple[int, ...] = (),
    kept: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Builds the model directory, writes the card and the parity report, uploads; returns the student's size."""
    from stages.data.instructions import Instructions
    from stages.export.card import write_card
    from stages.export.checkpoint import export_student
    from stages.export.mlflow_model import pyfunc_vectors
    from stages.export.parity import check_parity

    directory = context.output.work / "model"
    shutil.rmtree(directory, ignore_errors=True)  # a refused export must not mix with the next one
    export_student(weights, source, directory, query_prompts(Instructions.load(context.inputs["ingest"])), dims, kept)
    # Only what gets registered goes through loaders that cost a process or MLflow; a student in between does not.
    final = context.output.stage == "train" and context.params.train.check_loaders
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
    default = next(filter(None, (instructions.any("text", target) for target in PREFERRED)), None)
    return {**prompts, **({"query": f"{default}\n"} if default else {})}
