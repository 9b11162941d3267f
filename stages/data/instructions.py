"""The instruction that tells the encoder what is asked for, chosen by data set and modalities.

M-BEIR gives every (data set, query modality, target modality) a few interchangeable wordings. Training draws one for
each use; evaluation, features and search take the first, so that their numbers can be repeated. Only queries carry an
instruction, candidates never do.
"""

import zlib
from collections.abc import Iterable
from typing import Any

from stages.contract.context import Artifact
from stages.data.modalities import MODALITIES

PAIRS = "pairs"
"""The data set of a user's own pairs that name no task."""
WORDS = {"text": "text", "image": "image", "image,text": "image with its text"}


class Instructions:
    """All instructions of an ingest artifact, by (dataset id, query modality, target modality)."""

    def __init__(self, rows: Iterable[dict[str, Any]]):
        self.rows = sorted(rows, key=lambda row: (row["dataset_id"], row["query_modality"], row["target_modality"]))
        self.prompts = {
            (row["dataset_id"], row["query_modality"], row["target_modality"]): row["prompts"]
            for row in self.rows
            if row["prompts"]
        }

    @classmethod
    def load(cls, artifact: Artifact) -> "Instructions":
        """Reads `instructions/` of an ingest artifact."""
        import pyarrow.parquet as pq

        files = artifact.files("instructions")
        tables = [pq.read_table(path, filesystem=artifact.filesystem) for path in files]
        return cls(row for table in tables for row in table.to_pylist())

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> "Instructions":
        """From what `to_json` gave."""
        return cls(rows)

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as plain lists and dictionaries, sorted."""
        return self.rows

    def choose(self, dataset_id: int, query_modality: str, target_modality: str, pick: int = 0) -> str | None:
        """The wording number `pick` (counted round and round), or None where the data set has none for this pair."""
        prompts = self.prompts.get((dataset_id, query_modality, target_modality))
        return prompts[pick % len(prompts)] if prompts else None

    def any(self, query_modality: str, target_modality: str) -> str | None:
        """The first wording that any data set has for this pair of modalities; for search, which knows no data set."""
        pair = (query_modality, target_modality)
        return next((prompts[0] for key, prompts in self.prompts.items() if key[1:] == pair), None)


def before_text(instruction: str | None) -> str | None:
    """An instruction as it stands before a query's text: on a line of its own. None where there is none."""
    return f"{instruction}\n" if instruction else None


def plain_instructions(tasks: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Plain wordings for each (data set, query modality, target modality), in the columns of schemas.INSTRUCTIONS."""
    return [
        {
            "dataset_id": dataset_number(dataset),
            "dataset": dataset,
            "query_modality": query,
            "target_modality": target,
            "prompts": plain_prompts(query, target),
        }
        for dataset, query, target in sorted(set(tasks))
    ]


def default_instructions() -> list[dict[str, Any]]:
    """The wordings for every pair of modalities, for a student that brings none."""
    return plain_instructions((PAIRS, query, target) for query in MODALITIES for target in MODALITIES)


def plain_prompts(query: str, target: str) -> list[str]:
    """Interchangeable wordings for a pair of modalities."""
    given, wanted = WORDS[query], WORDS[target]
    article = "an" if wanted.startswith("image") else "a"
    return [f"Find the {wanted} that answers the {given}.", f"Retrieve {article} {wanted} that matches the {given}."]


def dataset_number(dataset: str) -> int:
    """The number of a data set, from its name alone."""
    return 0 if dataset == PAIRS else zlib.crc32(dataset.encode()) & 0x7FFFFFFF
