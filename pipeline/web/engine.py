"""The one seam to the retriever: checked questions in, results and vectors out, in batches, off the event loop.

Two models may answer: the student whose index is served, and its teacher over the vectors that evaluate stored, for
the comparison. Both read the same candidates and pictures. The teacher is the larger one and often not asked for:
it is loaded by the first question that names it, beside the thread of the model, so that the student goes on.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.web.batching import Answer, Batcher, Gate, Item
from pipeline.web.limits import MAX_RESULTS, RequestLimits
from pipeline.web.meters import Meters
from stages.contract.context import InputError
from stages.data.keys import hash_ids, locate
from stages.model.encoder import Row
from stages.search.card import candidate_model, holds_teacher
from stages.search.precision import Precision
from stages.search.retriever import Query, Result, Retriever, check_image, check_query, row_of

EXAMPLES = 12


class Lazy:
    """A retriever that is loaded when it is first used, once, whichever thread comes first."""

    def __init__(self, load: Callable[[], Retriever]) -> None:
        self.load, self.lock = load, threading.Lock()
        self.loaded: Retriever | None = None

    def get(self) -> Retriever:
        """The retriever."""
        with self.lock:
            if self.loaded is None:
                self.loaded = self.load()
            return self.loaded


class Shown:
    """Which pictures the index shows. The data also holds those of queries, of training and of other splits.

    Eight bytes for each picture: hashes; the id itself is compared when its picture is read.
    """

    def __init__(self, retriever: Retriever) -> None:
        kept = [hash_ids(ids) for ids in retriever.image_ids()]
        self.hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *kept]))

    def __contains__(self, image_id: str) -> bool:
        return bool(locate(hash_ids([image_id]), self.hashes)[0] >= 0)


class Engine:
    """What the routes may ask for.

    Args:
        student: the retriever that is served.
        teacher: loads the retriever of the comparison; None where there is none.
        index: the key of the index.
        registered: the name that the student is registered by, another name of it here; empty where there is none.
    """

    def __init__(
        self,
        student: Retriever,
        teacher: Callable[[], Retriever] | None,
        index: str,
        limits: RequestLimits,
        meters: Meters,
        registered: str = "",
    ) -> None:
        self.student, self.index, self.limits = student, index, limits
        self.shown = Shown(student)
        self.models = {"student": Lazy(lambda: student)} | ({"teacher": Lazy(teacher)} if teacher else {})
        self.names = ({registered: "student"} if registered else {}) | {name: name for name in self.models}
        self.models["student"].get()
        student.search_many([student.ask("Warm.", None, None)], 1)  # the first pass through a model takes a second
        self.examples = student.examples(EXAMPLES)
        self.decoders = ThreadPoolExecutor(limits.decoders, "decode")
        self.thinker = ThreadPoolExecutor(1, "model")  # one batch at a time: torch itself uses all cores
        self.loader = ThreadPoolExecutor(1, "load")
        self.searches = {name: self._batcher(self._search(name), f"search {name}", meters) for name in self.models}
        self.embeds = {name: self._batcher(self._embed(name), f"embed {name}", meters) for name in self.models}
        room = limits.bulks * limits.batch
        self.bulks = {name: self._batcher(self._embed(name), f"bulk {name}", meters, room) for name in self.models}
        self.bulk = Gate(limits.bulks)

    def _batcher(
        self, work: Callable[[list[Item]], Sequence[Answer]], name: str, meters: Meters, room: int = 0
    ) -> Batcher[Item, Answer]:
        seen = meters.batches.labels(name).observe
        batcher = Batcher(work, self.thinker, self.limits.batch, room or self.limits.waiting, seen)
        meters.waiting.labels(name).set_function(lambda: len(batcher.waiting))
        return batcher

    def _search(self, model: str) -> Callable[[list[tuple[Query, int]]], list[list[Result]]]:
        def work(asked: list[tuple[Query, int]]) -> list[list[Result]]:
            found = self.models[model].get().search_many([query for query, _ in asked], max(k for _, k in asked))
            return [results[:k] for results, (_, k) in zip(found, asked, strict=True)]

        return work

    def _embed(self, model: str) -> "Callable[[list[Row]], list[np.ndarray]]":
        return lambda rows: list(self.models[model].get().embed_many(rows))

    async def ask(
        self,
        text: str | None,
        image: bytes | None,
        want: str | None,
        k: int = 1,
        where: Mapping[str, Any] | None = None,
    ) -> Query:
        """The checked question. Raises InputError for what can't be asked."""
        clean = check_query(text, want, k, image is not None)
        checked = None
        if image is not None:
            loop = asyncio.get_running_loop()
            checked = await loop.run_in_executor(self.decoders, check_image, image, "the image", self.limits.image)
        return self.student.ask(clean, checked, want, where)

    async def search(self, query: Query, k: int, name: str) -> list[Result]:
        """The k best candidates. Raises InputError, Busy."""
        model = await self.ready(name)
        return (await self.searches[model].ask([(query, min(k, MAX_RESULTS))]))[0]

    async def embed(self, rows: Sequence[Row], model: str, bulk: bool = False) -> list[np.ndarray]:
        """One vector of unit length, float32 [D], for each row; `model` is ready. Raises Busy.

        Batches of long requests, `bulk`, wait apart: see embedding.py.
        """
        return await (self.bulks if bulk else self.embeds)[model].ask(rows)

    async def ready(self, name: str | None) -> str:
        """The model that a name means, the student without one, once it is loaded.

        Raises InputError where there is none of this name.
        """
        model = self.names.get(name or "student")
        if model is None:
            raise InputError(f"there is no model {name!r} here; ask one of: {', '.join(self.names)}")
        if self.models[model].loaded is None:
            await asyncio.get_running_loop().run_in_executor(self.loader, self.models[model].get)
        return model

    def leading(self, model: str, dimensions: int | None) -> int:
        """How many leading values of a vector are asked for. Raises InputError where the model has no such vectors."""
        encoder = self.models[model].get().encoder
        trained = [*getattr(encoder.backbone.config, "matryoshka_dimensions", ()), encoder.dim]
        if dimensions not in (None, *trained):
            held = ", ".join(map(str, trained))
            raise InputError(f"dimensions: vectors are not cut to {dimensions}; the model was trained for: {held}")
        return dimensions or encoder.dim

    def ranges(self, model: str, kind: str, dimensions: int) -> np.ndarray | None:
        """What int8 and uint8 are made by: the ranges of the index; None for other kinds of numbers.

        Raises InputError where the index has none for these vectors.
        """
        if kind not in ("int8", "uint8"):
            return None
        card = self.student.card
        if (ranges_2D := Precision.of(card).ranges_2D) is None:
            raise InputError(
                f"embedding_type: {kind} needs the ranges that values of candidates have, which an index of"
                " index.precision=int8 holds and this one does not; ask for float, binary or ubinary"
            )
        if dimensions != card["dim"] or (model == "teacher" and not holds_teacher(card)):
            raise InputError(
                f"embedding_type: the ranges for {kind} are those of the index, of its whole vectors; leave dimensions"
                " and model out, or ask for float, binary or ubinary"
            )
        return ranges_2D

    def check_side(self, model: str, is_query: bool) -> None:
        """Raises InputError where vectors of candidates are asked of the model that embeds only queries here."""
        if model == "student" and not is_query and holds_teacher(self.student.card):
            raise InputError(
                "this index holds the teacher's candidates, and the student embeds only its queries: set"
                " input_type=query, or model=teacher for candidates"
            )

    async def row(
        self, text: str | None, image: bytes | None, is_query: bool, want: str | None, told: str | None = None
    ) -> Row:
        """What a model reads for one input of /embed. Raises InputError.

        What a system message has `told` is the instruction, which the model's prompt puts in its place or before the
        text. Where nothing else was sent, it is the text.
        """
        alone = image is None and not (text or "").strip()
        if told and alone and not self.student.encoder.collator.read_out.instructed:
            text, told = told, None
        query = await self.ask(text, image, want)
        row = row_of(query if is_query else replace(query, instruction=None))
        return replace(row, instruction=told) if told else row

    async def tokens(self, rows: Sequence[Row]) -> int:
        """Tokens that the model reads for these rows."""
        count = self.student.encoder.collator.count_tokens
        return await asyncio.get_running_loop().run_in_executor(self.decoders, lambda: sum(map(count, rows)))

    async def picture(self, image_id: str) -> tuple[bytes, str]:
        """Encoded bytes and format of a picture of an indexed candidate. Raises KeyError for any other id."""
        if image_id not in self.shown:
            raise KeyError(image_id)
        return await asyncio.get_running_loop().run_in_executor(self.decoders, self.student.picture, image_id)

    def about(self) -> dict[str, Any]:
        """What is served, in numbers and in some examples."""
        card = self.student.card
        return {
            "index": self.index,
            "rows": card["rows"],
            "modalities": card["modalities"],
            "candidates": candidate_model(card)["model"],
            "models": {name: describe(lazy.loaded) for name, lazy in self.models.items()},
            "examples": [example.to_json() for example in self.examples],
        }

    async def close(self) -> None:
        """Ends all work."""
        batchers: list[Batcher[Any, Any]] = [*self.searches.values(), *self.embeds.values(), *self.bulks.values()]
        for batcher in batchers:
            await batcher.close()
        self.loader.shutdown(cancel_futures=True)
        self.thinker.shutdown(cancel_futures=True)
        self.decoders.shutdown(cancel_futures=True)


def describe(retriever: Retriever | None) -> dict[str, int]:
    """Size of a loaded model; nothing of one that nobody has asked yet."""
    if retriever is None:
        return {}
    encoder = retriever.encoder
    return {"layers": encoder.layers, "parameters": encoder.parameters_count, "dim": encoder.dim}
