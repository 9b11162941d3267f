"""A student from start to end, for `distill` and `train`: train it with frozen vision, export it, check the export.

How the training runs is told in `stages.distributed.training`; what the exported directory holds, in
`stages.export.checkpoint`.
"""

import shutil
from pathlib import Path
from typing import Any

from stages.contract.context import Artifact, Context, StageError
from stages.distributed.console import quiet_libraries
from stages.distributed.training import WEIGHTS, LiveTeacher, TrainingJob, optimisation, run_training

PREFERRED = ("image", "image,text", "text")  # what a bare text looks for, as in search
STREAMS = {"distill": 1, "train": 2}
"""Added to a stage's seed: with one seed for both, the last stage would meet the batches of the first once more."""


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
        seed=(context.params.seed if params.seed == -1 else params.seed) + STREAMS[context.output.stage],
        vary_instructions=features is None,
        smallest_task=params.smallest_task,
        repeat_positives=params.repeat_positives,
        sub_batch=getattr(params, "sub_batch", 0),
        least_crop=getattr(params, "least_crop", 1.0),
        mirror=getattr(params, "mirror", False),
        drop_words=getattr(params, "drop_words", 0.0),
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
    from stages.export.checkpoint import save_backbone
    from stages.model.encoder import Encoder

    backbone = Encoder.load(source, layers, context.cluster.chosen_precision()).backbone
    directory = context.output.work / WEIGHTS
    save_backbone(backbone.config, backbone.state_dict(), directory)
    return directory


def export_stage(
    context: Context, weights: Path, source: Path, measures: dict[str, Any], dims: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Builds the model directory, writes the card and the parity report, uploads; returns the student's size."""
    from stages.data.instructions import Instructions
    from stages.export.card import write_card
    from stages.export.checkpoint import export_student
    from stages.export.mlflow_model import pyfunc_vectors
    from stages.export.parity import check_parity

    directory = context.output.work / "model"
    shutil.rmtree(directory, ignore_errors=True)  # a refused export must not mix with the next one
    export_student(weights, source, directory, query_prompts(Instructions.load(context.inputs["ingest"])), dims)
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
    told = (instructions.any("text", target) for target in PREFERRED)
    default = next((one for one in told if one), None)
    return {**prompts, **({"query": f"{default}\n"} if default else {})}
