"""backbone: the full multimodal LLM that teaches, from a hub, a directory, or trained here from scratch.

Inputs: the ingested data, which `tiny` learns from. Steps: for `hub` and `local`, check the checkpoint and record a
pointer with its fingerprint, no weights are copied; for `tiny`, train a tokenizer on the ingested texts, draw a real
Qwen2-VL of a few million parameters, and train it at full depth with InfoNCE through the same loop as the student.
Outputs: `pointer.json` or `model/`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.contract.cache import cache_root
from stages.contract.context import Artifact, Context, StageError
from stages.contract.params import Section, knob

VERSION = 1


class Tiny(Section):
    """A real Qwen2-VL, a few million parameters, trained in the run."""

    layers: int = Field(6, ge=1)
    hidden: int = Field(128, ge=32, multiple_of=32)
    heads: int = Field(4, ge=1)
    vocabulary: int = Field(2048, ge=300)
    vision_layers: int = Field(2, ge=1)
    vision_hidden: int = Field(128, ge=32, multiple_of=32)
    patch: int = Field(14, ge=4)
    unit_scale: bool = Field(
        False, description="weights start by the model's width, and not with the 0.02 of models of thousands"
    )
    mimetic: bool = Field(
        False, description="the vision tower's attention starts like that of trained towers, for data of few images"
    )
    steps: int = Field(600, ge=1)
    batch_size: int = Field(64, ge=2)
    smallest_task: int = Field(0, ge=0, description="repeat the queries of small tasks until an epoch has this many")
    repeat_positives: int = Field(
        1, ge=1, description="a query of several positives comes so often in an epoch at most, once for each"
    )
    least_crop: float = Field(
        1.0, gt=0, le=1, description="random crops of training images keep this share of the area; 1 shows all whole"
    )
    mirror: bool = Field(
        False, description="every other training image is mirrored; only where left and right mean nothing"
    )
    drop_words: float = Field(
        0.0, ge=0, lt=1, description="a step leaves out this share of the words of queries of text alone"
    )
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.05, gt=0)
    symmetric: bool = Field(
        False, description="in-batch candidates are to find their queries as well, as CLIP trains; else queries alone"
    )
    warmup: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, ge=0)
    muon_rate: float = Field(
        0.0, ge=0, description="Muon trains the layers' matrices at this rate (0.02 is usual, with clip=0); 0 is AdamW"
    )
    chunk: int = knob(0, ge=0, description="rows embedded at a time, by GradCache; 0 is the whole batch")


class Params(Section):
    """The section `backbone`."""

    source: Literal["tiny", "hub", "local"] = Field(
        "tiny", description="trained from scratch in the run, from the Hugging Face hub, or a directory"
    )
    model: str = Field("", description="hub id for `hub`, directory for `local`")
    revision: str = Field("", description="commit of the hub model; required for `hub`")
    min_pixels: int = Field(4 * 28 * 28, ge=1, description="the model sees smaller pictures enlarged to this")
    max_pixels: int = Field(300 * 28 * 28, ge=1, description="the model sees larger pictures reduced to this")
    max_text_tokens: int = Field(450, ge=8, description="longer texts are cut")
    tiny: Tiny = Tiny()
    log_every: int = knob(25, ge=1)
    checkpoint_every: int = knob(100, ge=1, description="steps that a killed run repeats at most")


def fingerprint(params: Params) -> dict[str, Any] | None:
    """What identifies outside weights: the files of a local directory by name, size and time; None otherwise.

    A hub model is identified by its revision, which is a parameter.
    """
    if params.source != "local":
        return None
    files = sorted(path for path in Path(params.model).expanduser().iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def run(context: Context) -> dict[str, Any]:
    """Runs the stage; returns its headline metrics."""
    if context.params.backbone.source == "tiny":
        return _train_tiny(context)
    return _point(context)


def directory(artifact: Artifact) -> Path:
    """A local model directory of the backbone: the trained one, or a view of the checkpoint it points to.

    The view holds links to the checkpoint's files beside the pipeline's own limits, so that a checkpoint is never
    copied and never changed. Workers are handed its path: nodes of a cluster share the cache and the checkpoint.
    """
    if artifact.manifest["metrics"].get("source", "tiny") == "tiny":
        return artifact.local("model")
    pointer = artifact.read_json("pointer.json")
    source = _snapshot(pointer["source"], pointer["model"], pointer["revision"])
    name = hashlib.sha256(f"{source}\n{json.dumps(pointer, sort_keys=True)}".encode()).hexdigest()[:16]
    return _view(source, cache_root() / "views" / name, pointer)


def _snapshot(source: str, model: str, revision: str) -> Path:
    if source == "local":
        return Path(model).expanduser().resolve()
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))


def _view(source: Path, view: Path, pointer: dict[str, Any]) -> Path:
    from filelock import FileLock

    view.mkdir(parents=True, exist_ok=True)
    own = ("preprocessor_config.json", "puma.json")
    with FileLock(view / ".lock"):
        for path in source.iterdir():
            link = view / path.name
            if path.is_file() and path.name not in own and not link.exists():
                link.symlink_to(path.resolve())
        for name in own:  # never through a link: that would change the checkpoint
            if (view / name).is_symlink():
                (view / name).unlink()
        processor = json.loads((source / "preprocessor_config.json").read_text())
        processor["size"] = {"shortest_edge": pointer["min_pixels"], "longest_edge": pointer["max_pixels"]}
        for name in ("min_pixels", "max_pixels"):
            processor.pop(name, None)
        _write_if_changed(view / "preprocessor_config.json", processor)
        _write_if_changed(view / "puma.json", {"max_text_tokens": pointer["max_text_tokens"], "read_out": "[RET]"})
    return view


def _write_if_changed(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _point(context: Context) -> dict[str, Any]:
    """Checks that the checkpoint can be read and records where it is."""
    from stages.model.prune import pruned_config

    params = context.params.backbone
    try:
        source = _snapshot(params.source, params.model, params.revision)
        config = pruned_config(source, None)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(f"backbone {params.model}: {reason}; set backbone.model to a Qwen-VL checkpoint") from error
    if not list(source.glob("*.safetensors")):
        raise StageError(f"backbone {params.model}: no *.safetensors in {source}; other weight formats are not read")
    limits = {name: getattr(params, name) for name in ("min_pixels", "max_pixels", "max_text_tokens")}
    model = str(source) if params.source == "local" else params.model
    pointer = {"source": params.source, "model": model, "revision": params.revision, **limits}
    context.output.write_json("pointer.json", pointer)
    return {"source": params.source, "model_type": config.model_type, "layers": config.text_config.num_hidden_layers}


def _train_tiny(context: Context) -> dict[str, Any]:
    from stages.distributed.training import TrainingJob, optimisation, quiet_libraries, run_training
    from stages.export.checkpoint import export_student
    from stages.learn.objective import Objective

    quiet_libraries()
    params, tiny = context.params.backbone, context.params.backbone.tiny
    untrained = context.output.work / "untrained"
    if not (untrained / "puma.json").exists():
        _draw(context, untrained)
    job = TrainingJob(
        model=untrained,
        layers=None,
        ingest=context.inputs["ingest"],
        features=None,
        objective=Objective(loss="infonce", temperature=tiny.temperature, symmetric=tiny.symmetric),
        settings=optimisation(tiny, context.cluster),
        seed=context.params.seed,
        vary_instructions=True,
        smallest_task=tiny.smallest_task,
        repeat_positives=tiny.repeat_positives,
        least_crop=tiny.least_crop,
        mirror=tiny.mirror,
        drop_words=tiny.drop_words,
        train_vision=True,
        precision=context.cluster.chosen_precision(),
        threads=context.cluster.threads_each(context.cluster.workers),
        log_every=params.log_every,
        checkpoint_every=params.checkpoint_every,
        run=context.tracker.handle(),
        label="backbone",
    )
    weights, measures = run_training(context, job)
    model = context.output.work / "model"
    export_student(weights, untrained, model, prompts={})
    context.output.upload(model, "model")
    return {"source": "tiny", "model_type": "qwen2_vl", "layers": tiny.layers, **measures}


def _draw(context: Context, target: Path) -> None:
    """Writes the untrained tiny checkpoint; its settings file comes last and marks it complete."""
    from stages.model.tiny import tiny_config, train_tokenizer, write_tiny

    params, tiny = context.params.backbone, context.params.backbone.tiny
    tokenizer = train_tokenizer(_texts(context.inputs["ingest"]), tiny.vocabulary)
    sizes = {
        name: getattr(tiny, name) for name in ("layers", "hidden", "heads", "vision_layers", "vision_hidden", "patch")
    }
    limits = {name: getattr(params, name) for name in ("min_pixels", "max_pixels", "max_text_tokens")}
    target.mkdir(parents=True, exist_ok=True)
    start = {"seed": context.params.seed, "unit_scale": tiny.unit_scale, "mimetic": tiny.mimetic}
    write_tiny(target, tokenizer, tiny_config(tokenizer, **sizes), **limits, **start)


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
