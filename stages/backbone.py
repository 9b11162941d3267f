"""backbone: the full multimodal LLM that teaches, from a hub, a directory, or trained here from scratch.

Inputs: the ingested data, which `tiny` learns from. Steps: for `hub` and `local`, check the checkpoint and record a
pointer with its fingerprint, and copy the weights where the store is a bucket, which may be all that the nodes share;
for `tiny`, train a tokenizer on the ingested texts, draw a real Qwen2-VL of a few million parameters, and train it at
full depth with InfoNCE through the same loop as the student. With `backbone.tune` a checkpoint from outside is trained
as well, at full depth and in the same loop, its vision tower frozen as a student's is: a teacher that knows the task.
Outputs: `pointer.json`, `model/`, or both.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.contract.context import Artifact, Attempt, Context, StageError, Where
from stages.contract.params import Section
from stages.learn.settings import FineTuning, Training
from stages.model.checkpoint import kept_read_out
from stages.model.prompt import DEFAULT, READ_OUTS, SETTING

VERSION = 1
HEAD = 32  # values of a decoder's attention head


class Tiny(Training):
    """A real Qwen2-VL, a few million parameters, trained in the run."""

    steps: int = Field(600, ge=1, description="of the training from scratch")
    layers: int = Field(6, ge=1, description="decoder layers")
    hidden: int = Field(128, ge=32, multiple_of=32, description="width of the decoder and of a vector")
    vocabulary: int = Field(2048, ge=300, description="tokens, learned from the data's texts")
    vision_layers: int = Field(2, ge=1, description="layers of the vision tower")
    vision_hidden: int = Field(128, ge=32, multiple_of=32, description="width of the vision tower")
    patch: int = Field(14, ge=4, description="pixels of an image patch's side")


class Tune(FineTuning):
    """The section `backbone.tune`."""

    steps: int = Field(
        0,
        ge=0,
        description="in which a `hub` or `local` backbone learns `data` before it teaches; 0 leaves it as it is",
    )
    learning_rate: float = Field(1e-4, gt=0, description="the peak")


class Params(Section):
    """The section `backbone`."""

    source: Literal["tiny", "hub", "local"] = Field(
        "tiny", description="trained from scratch in the run, from the Hugging Face hub, or a directory"
    )
    model: str = Field("", description="hub id for `hub`, directory for `local`")
    revision: str = Field("", description="commit of the hub model; required for `hub`")
    min_pixels: int = Field(4 * 28 * 28, ge=1, description="the model sees smaller pictures enlarged to this")
    max_pixels: int = Field(300 * 28 * 28, ge=1, description="the model sees larger pictures reduced to this")
    max_text_characters: int = Field(
        1800, ge=32, description="of an instruction and its text together; no loader of a student reads on"
    )
    readout: Literal["puma", "puma_published", "eol", "qwen3_vl_embedding", "gme"] = Field(
        "puma",
        description="the prompt, and the token that a vector is read at; the last two are those of public embedders,"
        " and a student keeps what its backbone has",
    )
    tiny: Tiny = Tiny()
    tune: Tune = Tune()


def fingerprint(params: Params) -> dict[str, Any] | None:
    """What identifies outside weights: the files of a local directory by name, size and time; None otherwise.

    A hub model is identified by its revision, which is a parameter.
    """
    if params.source != "local":
        return None
    files = sorted(path for path in Path(params.model).expanduser().iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def unused_modules(params: Params) -> tuple[str, ...]:
    """What a backbone from outside does not come to: its key must not change with the code of a training."""
    if params.source == "tiny":
        return ()
    ours = ("distributed.tasks", "distributed.training", "export.checkpoint", "learn.objective")
    training = tuple(f"stages.{name}" for name in ours)
    return ("stages.model.tiny", *(() if params.tune.steps else training))


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    params = context.params.backbone
    if params.source == "tiny":
        return _train_tiny(context)
    pointer, known = _point(params)
    if params.tune.steps:
        return {**known, "trained": True, **_tune(context, pointer)}
    _keep(context.output, pointer)
    return {**known, "trained": False}


def _point(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks that the checkpoint can be read; where it is with the limits it is read with, and what it is."""
    from stages.model.checkpoint import snapshot
    from stages.model.prune import pruned_config

    try:
        source = snapshot(params.source, params.model, params.revision)
        config = pruned_config(source, None)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(f"backbone {params.model}: {reason}; set backbone.model to a Qwen-VL checkpoint") from error
    if not list(source.glob("*.safetensors")):
        raise StageError(f"backbone {params.model}: no *.safetensors in {source}; other weight formats are not read")
    if why := readout_refusal(params.readout, config.model_type, source):
        raise StageError(f"backbone.{why}")
    model = str(source) if params.source == "local" else params.model
    pointer = {"source": params.source, "model": model, "revision": params.revision, **_reading(params)}
    known = {"source": params.source, "model_type": config.model_type}
    return pointer, {**known, "layers": config.text_config.num_hidden_layers}


def readout_refusal(readout: str, model_type: str, source: Path | None = None) -> str:
    """Why a checkpoint can't be read so, in words; empty where it can.

    Args:
        readout: the setting.
        model_type: of the checkpoint.
        source: its directory, where there is one yet. One of our own with another read-out than the default is not
            read by the default for want of a setting.
    """
    if why := READ_OUTS[readout].refusal(model_type):
        return why
    kept = kept_read_out(source) if source else DEFAULT
    if kept not in (DEFAULT, readout):
        return f"{SETTING}={readout} is not how {source} was trained; set backbone.{SETTING}={kept}"
    return ""


def _reading(params: Params) -> dict[str, Any]:
    """How a checkpoint is read: the limits, and the read-out."""
    return {name: getattr(params, name) for name in ("min_pixels", "max_pixels", "max_text_characters", SETTING)}


def _keep(output: Attempt, pointer: dict[str, Any]) -> None:
    """Writes the pointer; in a bucket the checkpoint beside it, as it is to be read."""
    from stages.model.checkpoint import pointed

    output.write_json("pointer.json", pointer)
    if output.filesystem.type_name != "local":
        output.upload(pointed(pointer), "model")


def _tune(context: Context, pointer: dict[str, Any]) -> dict[str, float]:
    """Trains the whole backbone that the pointer names; its last measures."""
    from stages.model.checkpoint import pointed

    tune = context.params.backbone.tune
    seed = context.params.seed if tune.seed == -1 else tune.seed
    return _train(context, pointed(pointer), tune, seed)


def _train_tiny(context: Context) -> dict[str, Any]:
    tiny = context.params.backbone.tiny
    untrained = context.output.work / "untrained"
    if not (untrained / "puma.json").exists():
        _draw(context, untrained)
    known = {"source": "tiny", "model_type": "qwen2_vl", "layers": tiny.layers, "trained": True}
    return {**known, **_train(context, untrained, tiny, context.params.seed)}


def _train(context: Context, source: Path, settings: Training, seed: int) -> dict[str, float]:
    """Trains a model at full depth with InfoNCE and writes it as `model/`; its last measures."""
    from stages.distributed.console import quiet_libraries
    from stages.distributed.tasks import where_models_run
    from stages.distributed.training import TrainingJob, run_training
    from stages.learn.objective import Objective

    quiet_libraries()
    objective = Objective(loss="infonce", temperature=settings.temperature, symmetric=settings.symmetric)
    model = context.output.send(source)
    job = TrainingJob.of(context, model=model, layers=None, objective=objective, settings=settings, seed=seed)
    trained, measures = run_training(context, job)
    where_models_run(context, _export, trained, model)
    return measures


def _export(context: Context, trained: Any, source: Where) -> None:
    """Writes what a training left as `model/`."""
    from stages.distributed.tasks import fetch_trained, scratch
    from stages.distributed.training import WEIGHTS
    from stages.export.checkpoint import export_student

    with scratch(context.output) as directory:
        export_student(fetch_trained(trained, directory) / WEIGHTS, source(), directory / "model", prompts={})
        context.output.upload(directory / "model", "model")


def _draw(context: Context, target: Path) -> None:
    """Writes the untrained tiny checkpoint; its settings file comes last and marks it complete."""
    from stages.model.tiny import tiny_config, train_tokenizer, write_tiny

    params, tiny = context.params.backbone, context.params.backbone.tiny
    tokenizer = train_tokenizer(_texts(context.inputs["ingest"]), tiny.vocabulary, params.readout)
    sizes = {name: getattr(tiny, name) for name in ("layers", "hidden", "vision_layers", "vision_hidden", "patch")}
    config = tiny_config(tokenizer, heads=tiny.hidden // HEAD, **sizes)
    target.mkdir(parents=True, exist_ok=True)
    write_tiny(target, tokenizer, config, **_reading(params), seed=context.params.seed)


def _texts(ingest: Artifact) -> Iterator[str]:
    """All ingested texts and instructions, streamed; files and rows in their stored order.

    An instruction stands once in its file but before thousands of queries, so it counts a hundredfold.
    """
    import pyarrow.parquet as pq

    for prefix, column in (("queries", "text"), ("candidates", "text"), ("instructions", "prompts")):
        for path in ingest.files(prefix):
            for batch in pq.ParquetFile(path, filesystem=ingest.filesystem).iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield from value * 100 if isinstance(value, list) else [value] if value else []
