"""The directory of a model: what was trained here, or a view of a checkpoint from outside.

It drags nothing in, so that a stage that reads the backbone depends on nothing that trains one.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.cache import cache_root
from stages.model.prompt import DEFAULT, SETTING

if TYPE_CHECKING:
    from stages.contract.context import Artifact, Where

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""The files of a checkpoint that are read."""


def directory(artifact: "Artifact") -> Path:
    """A directory of this node with the model of an artifact: its own, or a view of the checkpoint it points to."""
    if _model_files(artifact):
        return artifact.local("model")
    return pointed(artifact.read_json("pointer.json"))


def trained(artifact: "Artifact") -> bool:
    """Whether the backbone was trained on the run's data: `tiny`, or tuned."""
    made = artifact.manifest["metrics"]
    # Artifacts from before a checkpoint could be trained do not say `trained`: of those only `tiny` was.
    return made.get("trained", made.get("source", "tiny") == "tiny")


def place(artifact: "Artifact") -> "Where":
    """The same for whichever node asks."""
    return partial(directory, artifact)


def settings(artifact: "Artifact") -> Path:
    """A directory of this machine with all that the model's directory holds but its weights, which may be many."""
    names = _model_files(artifact)
    if not names:
        return directory(artifact)
    for name in names:
        if not name.endswith(".safetensors"):
            artifact.local(name)
    return artifact.local("model/config.json").parent


def kept_read_out(source: Path) -> str:
    """The read-out that a checkpoint of ours names; the default for any other."""
    try:
        return str(json.loads((source / "puma.json").read_text(encoding="utf-8")).get(SETTING, DEFAULT))
    except (OSError, ValueError, AttributeError):
        return DEFAULT


def _model_files(artifact: "Artifact") -> list[str]:
    return [entry["path"] for entry in artifact.manifest["files"] if entry["path"].startswith("model/")]


def pointed(pointer: dict[str, Any]) -> Path:
    """A view of the checkpoint that a pointer names.

    The view holds links to the checkpoint's files beside the pipeline's own limits, so that a checkpoint is never
    copied and never changed.
    """
    source = snapshot(pointer["source"], pointer["model"], pointer["revision"])
    name = hashlib.sha256(f"{source}\n{json.dumps(pointer, sort_keys=True)}".encode()).hexdigest()[:16]
    return _view(source, cache_root() / "views" / name, pointer)


def snapshot(source: str, model: str, revision: str) -> Path:
    """The directory of a checkpoint as it came: one of this machine's, or the files of a hub model."""
    if source == "local":
        return Path(model).expanduser().resolve()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, allow_patterns=list(PATTERNS))).absolute()


def _view(source: Path, view: Path, pointer: dict[str, Any]) -> Path:
    from filelock import FileLock

    view.mkdir(parents=True, exist_ok=True)
    own = ("preprocessor_config.json", "puma.json")
    with FileLock(view.with_name(f"{view.name}.lock")):
        found = {path.name: path for pattern in PATTERNS for path in source.glob(pattern) if path.is_file()}
        wanted = {view / name: path for name, path in found.items() if name not in own}
        for link in view.iterdir():  # its own files never through a link: that would change the checkpoint
            if link.is_symlink() and link not in wanted:
                link.unlink()
        for link, path in wanted.items():  # to the name and not to what it is a link to, which may change
            if not link.is_symlink() or link.readlink() != path:
                new = link.with_name(f".{link.name}.new")
                new.unlink(missing_ok=True)
                new.symlink_to(path)
                new.replace(link)
        processor = json.loads((source / "preprocessor_config.json").read_text())
        processor["size"] = {"shortest_edge": pointer["min_pixels"], "longest_edge": pointer["max_pixels"]}
        for name in ("min_pixels", "max_pixels"):
            processor.pop(name, None)
        _write_if_changed(view / "preprocessor_config.json", processor)
        settings = {"max_text_characters": pointer["max_text_characters"], SETTING: pointer.get(SETTING, DEFAULT)}
        _write_if_changed(view / "puma.json", settings)
    return view


def _write_if_changed(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
