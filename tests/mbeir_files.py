"""Writes small M-BEIR directories for tests."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

INSTRUCTIONS = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"


def png(colour: str | int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def text_candidate(did: str, text: str | None) -> dict[str, Any]:
    return {"did": did, "txt": text, "img_path": None, "modality": "text", "src_content": None}


def image_candidate(did: str, path: str | None) -> dict[str, Any]:
    return {"did": did, "txt": None, "img_path": path, "modality": "image", "src_content": None}


def text_query(qid: str, positives: list[Any], negatives: list[Any] | None = None, task: int = 0) -> dict[str, Any]:
    return {
        "qid": qid,
        "query_txt": f"query {qid}",
        "query_img_path": None,
        "query_modality": "text",
        "query_src_content": None,
        "pos_cand_list": positives,
        "neg_cand_list": negatives or [],
        "task_id": task,
    }


def image_query(qid: str, path: str | None, positives: list[Any], task: int = 3) -> dict[str, Any]:
    return text_query(qid, positives, task=task) | {
        "query_txt": None,
        "query_img_path": path,
        "query_modality": "image",
    }


def write_lines(root: Path, path: str, lines: list[dict[str, Any] | str]) -> None:
    """Objects as JSON, strings as they are."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def write_bytes(root: Path, path: str, data: bytes) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def write_minimal(root: Path) -> Path:
    """One good query for each split, two text candidates."""
    write_lines(root, "query/train/mbeir_toy_train.jsonl", [text_query("7:1", ["7:1"], task=1)])
    for number, split in enumerate(("val", "test"), start=2):
        write_lines(root, f"query/{split}/mbeir_toy_task1_{split}.jsonl", [text_query(f"7:{number}", ["7:2"], task=1)])
    pool = [text_candidate("7:1", "one"), text_candidate("7:2", "two")]
    write_lines(root, "cand_pool/local/mbeir_toy_task1_cand_pool.jsonl", pool)
    write_bytes(root, "instructions/query_instructions.tsv", (INSTRUCTIONS + "text\ttext\ttoy\t7\tFind.\n").encode())
    return root
