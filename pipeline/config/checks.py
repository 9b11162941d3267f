"""Combinations of values that can't work together, refused before anything runs.

Each check belongs to fields of several sections; what one field allows by itself stands in the field. What is only
known by reading a source (does the path hold M-BEIR?) is asked of the stage that reads it: `check(params)`.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.config.checkpoint import backbone_shape, backbone_width, check_weights
from pipeline.config.recipes import Settings
from stages.backbone import readout_refusal
from stages.contract.context import InputError
from stages.contract.params import Section
from stages.learn.schedules import tau_hard_at
from stages.model.families import FAMILIES, refusal

if TYPE_CHECKING:
    from pipeline.config.sections import Config

TRACKING = ("sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
"""What MLflow's addresses start with, besides those of servers."""


def check_combinations(config: "Config", settings: Settings) -> None:
    """Raises InputError for the first combination that can't work."""
    check_corpus(config)
    check_data(config)
    check_unlabelled(config, settings)
    check_backbone(config)
    check_layers(config, settings)
    check_batches(config)
    check_crops(config)
    check_distill(config, settings)
    check_teacher(config, settings)
    check_mining(config, settings)
    check_matryoshka(config, settings)
    check_temperatures(config, settings)
    sections = [("ingest", config.data), ("ingest", config.distill.data), ("backbone", config.backbone)]
    sections.append(("features", config.features))
    for module, section in sections:
        check = getattr(import_module(f"stages.{module}"), "check", None)
        if check and getattr(section, "kind", True):
            check(section)
    check_teacher_width(config)
    check_tracking(config)


def check_tracking(config: "Config") -> None:
    """MLflow's address is one that it knows; whether something is there, a run finds out."""
    name = "tracking_uri" if config.tracking_uri else "MLFLOW_TRACKING_URI"
    given = config.tracking_uri or os.environ.get(name, "")
    if given and not is_tracked(given):
        raise InputError(
            f"{name}={given} is no address of MLflow; write http://HOST:PORT of a server, or sqlite:////PATH/mlflow.db"
        )


def is_tracked(uri: str) -> bool:
    """Whether MLflow has a store for such an address; directories it takes only where the environment says so."""
    scheme = uri if uri in TRACKING else urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        return bool(urlsplit(uri).hostname)
    if scheme in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        return True
    return scheme in TRACKING or scheme in entry_points(group="mlflow.tracking_store").names


def check_corpus(config: "Config") -> None:
    """A corpus of the user's is indexed by a student that is there, and needs nothing else."""
    corpus, student = config.index.corpus, config.student.model
    if corpus and not student:
        raise InputError(
            "index.corpus needs the student that indexes it; add student=models:/puma@champion, or a directory"
        )
    if student and not corpus:
        raise InputError("student.model only indexes a corpus of your own; add index.corpus=DIRECTORY")
    if corpus and config.index.candidates == "teacher":
        raise InputError(
            "index.candidates=teacher needs a run's teacher, and index.corpus is indexed by student.model alone;"
            " leave one of them out"
        )
    if not corpus and has_values(config.index.columns):
        raise InputError("index.columns names columns of a corpus of your own; add index.corpus=FILE, or leave it out")
    if corpus:
        import_module("stages.distributed.corpus").check(config.index)


def has_values(section: Section) -> bool:
    """Whether any text of the section is set."""
    return any(value for _, value in section)


def check_data(config: "Config") -> None:
    """A source on disk needs its place; made scenes have none, and neither has what is not set."""
    for data in (config.data, config.distill.data):
        name = data.section
        if data.kind not in ("", "scenes") and not data.path:
            place = {"pairs": "FILE", "corpus": "FOLDER"}.get(data.kind, "DIRECTORY")
            raise InputError(
                f"{name}.kind={data.kind} needs {name}.path, the place of the data; add {name}.path={place}"
            )
        if data.kind == "scenes" and data.path:
            kind = "pairs" if Path(data.path).suffix else "mbeir"
            raise InputError(
                f"{name}.path is set but {name}.kind=scenes makes its own pictures; add {name}.kind={kind}"
            )
        if data.kind != "corpus" and has_values(data.columns):
            raise InputError(
                f"{name}.columns names columns of a corpus without labels; add {name}.kind=corpus, or leave it out"
            )
        if not data.kind and data.path:
            raise InputError(f"{name}.path is set but {name}.kind is empty; add {name}.kind=corpus, pairs or mbeir")


def check_unlabelled(config: "Config", settings: Settings) -> None:
    """Without labels nothing says which layer finds best."""
    if config.data.kind != "corpus":
        return
    for path, value in (("features.layer", config.features.layer), ("student.layers", config.student.layers)):
        if value == "auto":
            raise InputError(
                f"{path}=auto in {settings.origin(path)} needs labels, and data.kind=corpus has none; give a number"
            )


def check_labels(config: "Config", stages: Collection[str]) -> None:
    """Raises InputError where rows without labels are to go further than distillation.

    `stages` are those that are to be brought up to date.
    """
    if config.data.kind == "corpus" and not config.index.corpus and {"train", "index", "evaluate"} & set(stages):
        raise InputError(
            "data.kind=corpus has no labels, which train, index and evaluate need; add --until distill, or give"
            " labelled data in data.path and the corpus as distill.data.kind=corpus distill.data.path=PATH"
        )


def self_taught(config: "Config") -> str:
    """What to know where a teacher is trained on rows without labels; empty where it is not."""
    backbone = config.backbone
    if config.data.kind != "corpus" or config.features.teacher:
        return ""
    if backbone.source == "tiny":
        how, instead = "backbone.source=tiny is trained", "name a pretrained model with backbone.source=local or hub"
    elif backbone.tune.steps:
        how, instead = f"backbone.tune.steps={backbone.tune.steps} trains the backbone", "set it to 0"
    else:
        return ""
    return (
        f"{how} to find each row of data by itself, as there are no labels, and teaches what little that is; {instead}"
    )


def check_backbone(config: "Config") -> None:
    """A hub model needs its id and its commit, a local one its directory."""
    backbone = config.backbone
    if backbone.source == "hub":
        check_hub(backbone)
    if backbone.source == "local":
        check_directory(backbone)
    if backbone.source == "tiny" and backbone.model:
        raise InputError(
            "backbone.model is set but backbone.source=tiny trains its own; add backbone.source=local or hub"
        )
    if backbone.source == "tiny" and backbone.tune.steps:
        raise InputError(
            f"backbone.tune.steps={backbone.tune.steps} trains a backbone from outside, and backbone.source=tiny"
            " trains its own on the same data; raise backbone.tiny.steps, or add backbone.source=local or hub"
        )
    if backbone.min_pixels > backbone.max_pixels:
        raise InputError(
            f"backbone.min_pixels={backbone.min_pixels} is above backbone.max_pixels={backbone.max_pixels}; lower it"
        )


def check_hub(backbone: Any) -> None:
    """A hub model is named by its id, and by a commit: what a branch or a tag names may be other weights tomorrow."""
    if not backbone.model:
        raise InputError("backbone.source=hub needs backbone.model, for example Qwen/Qwen2-VL-2B-Instruct")
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(backbone.model)
    except HFValidationError:
        raise InputError(
            f"backbone.model={backbone.model} is no id of a hub model, such as Qwen/Qwen2-VL-2B-Instruct; give one, or"
            " add backbone.source=local for a directory"
        ) from None
    if not re.fullmatch("[0-9a-f]{40}", backbone.revision):
        wrong = f", and {backbone.revision} is not one of 40 hexadecimal digits" if backbone.revision else ""
        raise InputError(
            f"backbone.source=hub needs backbone.revision, a commit of {backbone.model}, so that a run can be"
            f" repeated{wrong}; take it from the model's page and add backbone.revision=COMMIT"
        )


def check_directory(backbone: Any) -> None:
    """A local model is a directory with a configuration and with weights that can be read."""
    directory = Path(backbone.model).expanduser()
    if not (directory / "config.json").is_file():
        raise InputError(
            f"backbone.model={backbone.model or '(empty)'} is not a model's directory: it has no config.json;"
            " give the directory of a checkpoint"
        )
    if not any(directory.glob("*.safetensors")):
        raise InputError(
            f"backbone.model={backbone.model} has no *.safetensors, and other formats of weights are not read; give"
            " the directory of a checkpoint that has them"
        )
    check_weights(directory)


def check_crops(config: "Config") -> None:
    """A teacher whose states were computed before has read every image whole."""
    distill, train = config.distill, config.train
    if distill.least_crop < 1 and distill.teacher == "cached":
        raise InputError(
            f"distill.least_crop={distill.least_crop:g} shows the student parts of images that the cached teacher has"
            " read whole; set it to 1, or distill.teacher=live"
        )
    if train.least_crop < 1 and train.feature_weight:
        raise InputError(
            f"train.least_crop={train.least_crop:g} shows the student parts of images that the teacher of"
            " train.feature_weight has read whole; set one to 1, or the other to 0"
        )


def check_layers(config: "Config", settings: Settings) -> None:
    """The student's and the teacher's layer as far as the backbone is known; and no bound that bounds nothing."""
    kept = config.student.layers
    family, depth = backbone_shape(config.backbone)
    if family and family not in FAMILIES:
        raise InputError(
            f"backbone.model={config.backbone.model} is of the family {family}, which can't be a backbone;"
            f" choose one of {', '.join(FAMILIES)}"
        )
    check_readout(config.backbone, family)
    check_depth(config, family, depth, lambda path: f" in {settings.origin(path)}")
    if kept != "auto" and "student.max_loss" in settings.origins:
        origin = settings.origin("student.max_loss")
        spelled = list(kept) if isinstance(kept, tuple) else kept
        raise InputError(f"student.max_loss does nothing in {origin} with student.layers={spelled}; set it to auto")


def check_readout(backbone: Any, family: str) -> None:
    """A public embedder's prompt belongs to its family, and a student of ours is read as it was trained."""
    source = Path(backbone.model).expanduser() if backbone.source == "local" else None
    if family and (why := readout_refusal(backbone.readout, family, source)):
        raise InputError(f"backbone.{why}")


def check_made(config: Any, stage: str, manifest: Mapping[str, Any]) -> None:
    """What only an artifact tells: how deep a backbone from a hub is. Raises InputError before others read it."""
    if stage == "backbone":
        check_depth(config, manifest["metrics"]["model_type"], manifest["metrics"]["layers"])


def check_depth(config: "Config", family: str, depth: int, where: Callable[[str], str] = lambda path: "") -> None:
    """The student keeps at least as many layers as its family needs and at most those that the backbone has.

    `depth` 0 is not known yet; how many `auto` keeps is only known when the depth curve is. `where(path)` tells where
    a value was set.
    """
    kept, layer = config.student.layers, config.features.layer
    if isinstance(kept, tuple) and (why := refusal(kept, depth, FAMILIES.get(family))):
        raise InputError(f"student.layers={list(kept)} can't be kept{where('student.layers')}: {why}")
    least, group = (FAMILIES[family].least, FAMILIES[family].group) if family in FAMILIES else (1, 1)
    if isinstance(kept, int) and kept < least:
        needs = f"{family} needs at least {least}" if least > 1 else "a student keeps at least 1"
        raise InputError(f"student.layers={kept} is too few{where('student.layers')}: {needs}")
    if isinstance(kept, int) and kept % group and kept != depth:
        raise InputError(
            f"student.layers={kept} splits a group{where('student.layers')}: the kinds of {family}'s layers repeat"
            f" after {group}; set it to {kept - kept % group} or {kept - kept % group + group}"
        )
    if depth and isinstance(kept, int) and kept > depth:
        raise InputError(
            f"student.layers={kept} is too many{where('student.layers')}: the backbone has {depth} layers"
        )
    if isinstance(layer, int) and (layer == 0 or (depth and abs(layer) > depth)):
        upper = f"1 to {depth}" if depth else "1 or more"
        raise InputError(
            f"features.layer={layer} is no layer{where('features.layer')}; choose -1 for the last, or {upper}"
        )


def check_distill(config: "Config", settings: Settings) -> None:
    """Something is to be learned."""
    distill = config.distill
    if distill.steps and not distill.contrastive_weight and not distill.feature_weight:
        origin = settings.origin("distill.contrastive_weight")
        raise InputError(f"distill learns from nothing in {origin}: both weights are 0; raise one, or distill.steps=0")


def check_teacher(config: "Config", settings: Settings) -> None:
    """A teacher from outside is nothing but its vectors: what reads the backbone's layers anew can't follow it."""
    if not config.features.teacher:
        return
    needs_layers = {
        "features.layer": (config.features.layer, -1),
        "distill.teacher": (config.distill.teacher, "cached"),
        "index.candidates": (config.index.candidates, "student"),
    }
    for path, (value, without) in needs_layers.items():
        if value != without:
            raise InputError(
                f"{path}={value} in {settings.origin(path)} asks for the backbone's layers, and features.teacher"
                f" teaches in their place; set {path}={without}, or leave features.teacher out"
            )


def check_teacher_width(config: "Config") -> None:
    """Without a turn, values are compared one by one; as far as both widths are known before anything runs."""
    from stages.distributed.outside import width_of

    for name, section in (("distill", config.distill), ("train", config.train)):
        compared = section.steps and section.feature_weight and section.feature_loss in ("mse", "cosine")
        if not config.features.teacher or not compared or section.turn:
            continue
        width, dim = width_of(config.features.teacher), backbone_width(config.backbone)
        if width and dim and width != dim:
            raise InputError(
                f"features.teacher has vectors of {width} values and a student's have {dim}, which"
                f" {name}.feature_loss={section.feature_loss} can't compare; set {name}.turn=true, or"
                f" {name}.feature_loss=kl"
            )


def check_mining(config: "Config", settings: Settings) -> None:
    """Negatives are mined for training, so there has to be some."""
    if config.train.mine.per_query and not config.train.steps:
        origin = settings.origin("train.mine.per_query")
        raise InputError(f"train.mine.per_query mines for no training in {origin}: train.steps=0; set one of them")


def check_matryoshka(config: "Config", settings: Settings) -> None:
    """Leading dimensions are fewer than a vector has; how many those are is known beforehand for `tiny` only."""
    dims, origin = config.train.matryoshka, settings.origin("train.matryoshka")
    dim = config.backbone.tiny.hidden if config.backbone.source == "tiny" else 0
    if dims and (min(dims) < 1 or (dim and max(dims) >= dim)):
        upper = f"1 to {dim - 1}, a vector has {dim}" if dim else "1 upward"
        raise InputError(f"train.matryoshka={list(dims)} are no leading dimensions in {origin}; choose from {upper}")


def check_temperatures(config: "Config", settings: Settings) -> None:
    """A τ_hard that is rounded to 0 divides by nothing; learnable ones are kept above a hundredth, as CLIP's is."""
    train = config.train
    start = train.hard_temperature or train.temperature
    if train.loss == "mac" and not tau_hard_at(1, start, train.hard_decay, train.hard_until):
        raised = "train.hard_temperature" if train.hard_temperature else "train.temperature"
        raise InputError(f"τ_hard falls to 0, rounded to thousandths; lower train.hard_decay or raise {raised}")
    for name in {"learnable": ["temperature"], "mac_learnable": ["temperature", "hard_temperature"]}.get(
        train.loss, []
    ):
        value, origin = getattr(train, name), settings.origin(f"train.{name}")
        if 0 < value < 0.01:
            raise InputError(f"train.{name}={value} is below 0.01 in {origin}, where a learnable τ ends")


def check_batches(config: "Config") -> None:
    """A batch is shared evenly by the training processes, so that all of them see as many negatives."""
    backbone = config.backbone
    sizes = {"distill.batch_size": config.distill.batch_size, "train.batch_size": config.train.batch_size}
    if backbone.source == "tiny":
        sizes["backbone.tiny.batch_size"] = backbone.tiny.batch_size
    elif backbone.tune.steps:
        sizes["backbone.tune.batch_size"] = backbone.tune.batch_size
    for path, size in sizes.items():
        if size % config.cluster.workers:
            raise InputError(
                f"{path}={size} can't be shared by cluster.workers={config.cluster.workers}; choose a multiple of it"
            )
