"""Which student a directory holds, by samples of its weights, and the instructions that it was trained with.

Light on purpose, because plans ask: neither torch nor transformers is imported.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from stages.contract.context import InputError
from stages.data.instructions import dataset_number, default_instructions

BLOCK = 65_536
SAMPLES = 32
PROMPT = re.compile(r"(?P<dataset>.*): (?P<asked>[a-z,]+) → (?P<wanted>[a-z,]+)")
SETTINGS = ("config.json", "puma.json", "preprocessor_config.json", "tokenizer.json")


def check_student(directory: Path) -> None:
    """Raises InputError where the directory holds no exported student, or weights that are not safetensors."""
    missing = [name for name in ("config.json", "puma.json") if not (directory / name).is_file()]
    if not missing and not any(directory.glob("*.safetensors")):
        missing = ["*.safetensors (other formats may hold code and are not read)"]
    if missing:
        raise InputError(f"student.model={directory} is no exported student, it lacks {', '.join(missing)}")


def identify(directory: Path) -> str:
    """16 hex digits over the settings in full and over samples of the weights: training changes nearly all of them."""
    digest = hashlib.sha256()
    for name in SETTINGS:
        path = directory / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, (size - BLOCK) * sample // (SAMPLES - 1)))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


def instructions_of(directory: Path) -> list[dict[str, Any]]:
    """The instructions that the student was trained with, in the columns of schemas.INSTRUCTIONS, as its export keeps
    them for sentence-transformers; plain ones where it has none."""
    path = directory / "config_sentence_transformers.json"
    prompts = json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
    rows = []
    for name, prompt in prompts.items():
        match = PROMPT.fullmatch(name)
        if match and prompt.strip():
            dataset = {"dataset_id": dataset_number(match["dataset"]), "dataset": match["dataset"]}
            modalities = {"query_modality": match["asked"], "target_modality": match["wanted"]}
            rows.append({**dataset, **modalities, "prompts": [prompt.strip()]})
    return rows or default_instructions()
