"""Which query meets which positive, with which instruction, at which step: a pure function of (seed, step).

The order of queries comes from `stages.data.order`; here a step's indices become rows. Nothing is drawn from shared
state, so a resumed run and any number of ranks see the same samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from stages.contract.context import Artifact
from stages.data.instructions import Instructions, before_text
from stages.data.keys import NOTHING, hash_ids
from stages.data.modalities import MODALITIES
from stages.data.order import batch_at, drawn, epoch_order, in_blocks, picks, task_groups, upsampled
from stages.data.tables import MappedTable
from stages.learn.crops import random_box
from stages.learn.settings import Sampling
from stages.model.rows import Row

CONTENTS = 1 << 16  # content ids that are remembered: a popular positive is looked up once


@dataclass(frozen=True)
class Pairs:
    """One rank's share of a step: B queries, the positive of each, and hard negatives. Hashes are int64.

    A rank has S = B · (1 + hard negatives of a query) places for candidates: query i's positive in place i, the hard
    negatives after the positives, and `NOTHING` in the places of those that queries lack.
    """

    query_rows: list[Row]
    candidate_rows: list[Row]
    negative_rows: list[Row]
    query_ids: list[str]
    candidate_ids: list[str]
    candidate_hash: np.ndarray
    """Of the ids in the places, [S]."""
    content_hash: np.ndarray
    """Of their contents, [S]."""
    modality: np.ndarray
    """Their modalities as codes, [S]; a positive's is its query's target modality."""
    positives: list[np.ndarray]
    """For each query the hashes of the ids of all its positives."""
    contents: list[np.ndarray]
    """For each query the hashes of the contents of all its positives."""


class PairSampler:
    """Random access to query-positive pairs of the train split, memory-mapped.

    Of a query's positives one is drawn for each use, as published, and over the epochs all of the target's modality
    come up. The loss masks the others wherever they turn up; several positives in one softmax would compete with each
    other.

    Args:
        ingest: the ingest artifact.
        settings: which queries meet, and what of an image is shown.
        world: number of ranks.
        rank: this process's.
        seed: decides everything that is random.
        vary_instructions: draw an instruction for each use; False always takes the first, as evaluation does.
        mined: a table of mined hard negatives by qid, beside those that the data gives.
        hard_negatives: of a query's, drawn for each use, or all where there are fewer.
        subset: (most, seed) of `order.drawn`, where not all samples are to come up.
    """

    def __init__(
        self,
        ingest: Artifact,
        settings: Sampling,
        *,
        world: int,
        rank: int,
        seed: int,
        vary_instructions: bool,
        mined: Any = None,
        hard_negatives: int = 0,
        subset: tuple[int, int] | None = None,
    ):
        self.queries = MappedTable.open(ingest, "queries", "qid", where={"split": "train"})
        self.candidates = MappedTable.open(ingest, "candidates", "did")
        self.images = MappedTable.open(ingest, "images", "image_id")
        self.instructions = Instructions.load(ingest)
        self.settings, self.world, self.rank, self.seed = settings, world, rank, seed
        self.vary_instructions, self.hard_negatives = vary_instructions, hard_negatives
        self.known = lru_cache(CONTENTS)(self._known)
        datasets, tasks = (self.queries.column(name).to_numpy() for name in ("dataset_id", "task_id"))
        self.mined = None if mined is None else MappedTable.open(mined, "negatives", "qid")
        group = task_groups(datasets, tasks)
        self.epoch = upsampled(group, settings.smallest_task)
        if subset is not None:
            self.epoch = drawn(self.epoch, *subset)
        self.order_of = epoch_order
        if settings.sub_batch:
            group = group[self.epoch]
            self.order_of = lru_cache(2)(lambda *of: in_blocks(epoch_order(*of), group, settings.sub_batch))

    def __len__(self) -> int:
        """Samples of an epoch; a query that is repeated counts each time."""
        return len(self.epoch)

    def pairs(self, step: int) -> Pairs:
        """This rank's pairs of one step."""
        place = {"world": self.world, "rank": self.rank, "seed": self.seed}
        indices = batch_at(step, size=len(self), batch=self.settings.batch_size, **place, order_of=self.order_of)
        queries = [self.queries.row(int(row)) for row in self.epoch[indices]]
        which = picks(step, indices, seed=self.seed, stream=0)
        wording = picks(step, indices, seed=self.seed, stream=1) if self.vary_instructions else [0] * len(indices)
        candidates = [self._drawn_positive(query, int(draw)) for query, draw in zip(queries, which, strict=True)]
        targets = [query["target_modality"] for query in queries]
        negatives = self._drawn_negatives(queries, picks(step, indices, seed=self.seed, stream=2))
        places = candidates + negatives
        empty = len(queries) * (1 + self.hard_negatives) - len(places)
        return Pairs(
            query_rows=[self._query(*args, step) for args in zip(queries, targets, wording, strict=True)],
            candidate_rows=[self._candidate(candidate, step) for candidate in candidates],
            negative_rows=[self._candidate(negative, step) for negative in negatives],
            query_ids=[query["qid"] for query in queries],
            candidate_ids=[candidate["did"] for candidate in candidates],
            candidate_hash=np.pad(_hashes(row["did"] for row in places), (0, empty), constant_values=NOTHING),
            content_hash=np.pad(_hashes(row["content_id"] for row in places), (0, empty), constant_values=NOTHING),
            modality=np.pad(np.array([MODALITIES.index(row["modality"]) for row in places]), (0, empty)),
            positives=[_hashes(query["positives"]) for query in queries],
            contents=[_hashes(self.known(did)[0] for did in query["positives"]) for query in queries],
        )

    def _drawn_positive(self, query: dict, draw: int) -> dict:
        """A positive of the query's target modality, which the instruction names; there is always one."""
        fitting = [did for did in query["positives"] if self.known(did)[1] == query["target_modality"]]
        return self.candidates.row(self.candidates.find(fitting[draw % len(fitting)]))

    def _drawn_negatives(self, queries: list[dict], draws: np.ndarray) -> list[dict]:
        """Up to `hard_negatives` candidates of each query, drawn without repetition; its positives are never among
        them. What is drawn depends on the query's own draw, and not on who else is in the batch."""
        drawn = []
        for query, draw in zip(queries, draws, strict=True) if self.hard_negatives else ():
            known = set(query["positives"])
            dids = [did for did in self.negatives(query) if did not in known]
            order = np.random.default_rng(int(draw)).permutation(len(dids))[: self.hard_negatives]
            drawn += [self.candidates.row(self.candidates.find(dids[place])) for place in order]
        return drawn

    def _known(self, did: str) -> tuple[str, str]:
        """Content id and modality of a candidate."""
        candidate = self.candidates.row(self.candidates.find(did))
        return candidate["content_id"], candidate["modality"]

    def negatives(self, query: dict) -> list[str]:
        """Ids of a query's hard negatives: those that the data gives, then the mined ones, hardest first."""
        given = query["negatives"]
        if self.mined is None or query["qid"] not in self.mined:
            return given
        mined = self.mined.row(self.mined.find(query["qid"]))["negatives"]
        return given + [did for did in mined if did not in given]

    def _query(self, query: dict, target: str, pick: int, step: int) -> Row:
        instruction = self.instructions.choose(query["dataset_id"], query["modality"], target, int(pick))
        row = self._row(query["qid"], query["text"], query["image_id"], step)
        return replace(row, instruction=before_text(instruction))

    def _candidate(self, candidate: dict, step: int) -> Row:
        return self._row(candidate["did"], candidate["text"], candidate["image_id"], step)

    def _row(self, identity: str, text: str | None, image_id: str | None, step: int) -> Row:
        """What is seen depends on the query or candidate and on the step, not on who else is in the batch."""
        if image_id is None:
            return Row(text)
        image = self.images.row(self.images.find(image_id))["bytes"]
        draw = int(picks(step, hash_ids([identity]), seed=self.seed, stream=3)[0])
        return Row(text, image, random_box(draw, self.settings.least_crop))


def _hashes(ids: Iterable[str]) -> np.ndarray:
    """int64 hashes, which torch can compare."""
    return hash_ids(ids).view(np.int64)
