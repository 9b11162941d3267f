"""Which query meets which positive, with which instruction, at which step: a pure function of (seed, step).

The order of queries comes from `stages.data.order`; here a step's indices become rows. Nothing is drawn from shared
state, so a resumed run and any number of ranks see the same samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.data.instructions import Instructions, with_instruction
from stages.data.keys import hash_ids
from stages.data.order import batch_at, picks, upsampled
from stages.data.schemas import MODALITIES
from stages.data.tables import MappedTable
from stages.model.inputs import Row


@dataclass(frozen=True)
class Pairs:
    """One rank's share of a step: query i belongs to candidate i. Id arrays are int64 hashes."""

    query_rows: list[Row]
    candidate_rows: list[Row]
    query_ids: list[str]
    candidate_ids: list[str]
    candidate_hash: np.ndarray
    content_hash: np.ndarray
    positive_hashes: list[np.ndarray]
    target_modality: np.ndarray
    """The positive's modality as a code, the target modality of the query."""


class PairSampler:
    """Random access to query-positive pairs of the train split, memory-mapped.

    Args:
        ingest: the ingest artifact.
        batch: queries of a step over all ranks.
        seed: decides everything that is random.
        vary_instructions: draw an instruction for each use; False always takes the first, as evaluation does.
        smallest_task: queries of a task of a data set are repeated until an epoch has this many; 0 repeats none.
        mined: a table of mined hard negatives by qid, beside those that the data gives.
    """

    def __init__(
        self,
        ingest: Any,
        *,
        batch: int,
        world: int,
        rank: int,
        seed: int,
        vary_instructions: bool,
        smallest_task: int = 0,
        mined: Any = None,
    ):
        self.queries = MappedTable.open(ingest, "queries", "qid", where={"split": "train"})
        self.candidates = MappedTable.open(ingest, "candidates", "did")
        self.images = MappedTable.open(ingest, "images", "image_id")
        self.instructions = Instructions.load(ingest)
        self.batch, self.world, self.rank, self.seed = batch, world, rank, seed
        self.vary_instructions = vary_instructions
        datasets, tasks = (self.queries.column(name).to_numpy() for name in ("dataset_id", "task_id"))
        self.mined = None if mined is None else MappedTable.open(mined, "negatives", "qid")
        self.epoch = upsampled(datasets.astype(np.int64) << 32 | tasks, smallest_task)

    def __len__(self) -> int:
        """Samples of an epoch; a query that is repeated counts each time."""
        return len(self.epoch)

    def pairs(self, step: int) -> Pairs:
        """This rank's pairs of one step."""
        indices = batch_at(step, size=len(self), batch=self.batch, world=self.world, rank=self.rank, seed=self.seed)
        queries = [self.queries.row(int(row)) for row in self.epoch[indices]]
        which = picks(step, indices, seed=self.seed, stream=0)
        wording = picks(step, indices, seed=self.seed, stream=1) if self.vary_instructions else [0] * len(indices)
        candidates = [
            self.candidates.row(self.candidates.find(query["positives"][int(draw) % len(query["positives"])]))
            for query, draw in zip(queries, which, strict=True)
        ]
        modalities = [candidate["modality"] for candidate in candidates]
        return Pairs(
            query_rows=[self._query(*args) for args in zip(queries, modalities, wording, strict=True)],
            candidate_rows=[self._row(candidate["text"], candidate["image_id"]) for candidate in candidates],
            query_ids=[query["qid"] for query in queries],
            candidate_ids=[candidate["did"] for candidate in candidates],
            candidate_hash=hash_ids(candidate["did"] for candidate in candidates).view(np.int64),
            content_hash=hash_ids(candidate["content_id"] for candidate in candidates).view(np.int64),
            positive_hashes=[hash_ids(query["positives"]).view(np.int64) for query in queries],
            target_modality=np.array([MODALITIES.index(modality) for modality in modalities]),
        )

    def negatives(self, query: dict) -> list[str]:
        """Ids of a query's hard negatives: those that the data gives, then the mined ones, hardest first."""
        given = query["negatives"]
        if self.mined is None or query["qid"] not in self.mined:
            return given
        mined = self.mined.row(self.mined.find(query["qid"]))["negatives"]
        return given + [did for did in mined if did not in given]

    def _query(self, query: dict, target: str, pick: int) -> Row:
        instruction = self.instructions.choose(query["dataset_id"], query["modality"], target, int(pick))
        return self._row(with_instruction(instruction, query["text"]), query["image_id"])

    def _row(self, text: str | None, image_id: str | None) -> Row:
        image = None if image_id is None else self.images.row(self.images.find(image_id))["bytes"]
        return Row(text, image)
