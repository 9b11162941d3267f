"""Search for a person: text, a picture or both in; candidates with their text and picture out.

The query goes through the same steps as an evaluated one: text in M-BEIR's form, picture checked and shrunk as ingest
does it, the instruction of its task in front, the same encoder, the same vectors. Only the task has to be
guessed where the person does not say what kind of thing to find: see `Retriever.choose_target`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stages.contract.context import Artifact, InputError
from stages.data.formats import READ
from stages.data.images import Checked, ImageLimits, ImageRejected, check
from stages.data.instructions import Instructions, before_text
from stages.data.modalities import MODALITIES, PREFERRED, modality_of
from stages.data.sources.fields import normalise, read_json
from stages.data.tables import MappedTable
from stages.model import checkpoint
from stages.model.identity import check_student, identify
from stages.model.loading import load_encoder_here
from stages.model.prompt import clean
from stages.model.rows import Row
from stages.search.backends import Index, open_index, read_card
from stages.search.card import candidate_model
from stages.search.filters import Filter, filter_of, keep_pools

if TYPE_CHECKING:
    from stages.model.encoder import Encoder

LOOKED_AT = 8192  # rows that examples are chosen from


@dataclass(frozen=True)
class Query:
    """A checked query: what was asked, which modality is looked for (None: any), and in which words."""

    text: str | None
    image: Checked | None
    want: str | None
    instruction: str | None
    filter: Filter = field(default_factory=Filter)

    @property
    def modality(self) -> str:
        """text, image, or both."""
        return modality_of(self.text, self.image)

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary; of the picture its id."""
        image = self.image.image_id if self.image else None
        asked = {"text": self.text, "image": image, "modality": self.modality}
        return asked | {"want": self.want, "instruction": self.instruction}


@dataclass(frozen=True)
class Result:
    """One found candidate; `image` is the id of its picture."""

    id: str
    score: float
    text: str | None
    image: str | None
    modality: str
    metadata: dict[str, Any] | None = None
    """The other columns of a user's own corpus; None where the index has no such columns."""

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return {name: value for name, value in asdict(self).items() if name != "metadata" or value is not None}


def check_query(text: str | None, want: str | None, k: int, has_image: bool) -> str | None:
    """The text as ingest would store it, without loading anything. Raises InputError with one line."""
    if k < 1:
        raise InputError(f"-k {k} asks for no result; give 1 or more")
    if want is not None and want not in MODALITIES:
        raise InputError(f"'{want}' can't be wanted; choose one of: {' '.join(MODALITIES)}")
    if text is None and not has_image:
        raise InputError("nothing to search for; give a text, an image or both")
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the text is not valid UTF-8; check the encoding of the terminal") from None
    told = normalise(clean(text))
    if not told:
        raise InputError("the text is empty; write some words or leave it out and give an image")
    return told


def check_image(data: bytes, name: str, limits: ImageLimits) -> Checked:
    """The picture as ingest would store it. Raises InputError where it is none, damaged or too large."""
    try:
        return check(data, limits)
    except ImageRejected as error:
        raise InputError(f"{name} can't be used: {error}; give a whole {READ}") from None


def row_of(query: Query) -> Row:
    """What the encoder reads for a query: its text and its picture, and its instruction."""
    picture = query.image.bytes if query.image else None
    return Row(query.text, picture, instruction=before_text(query.instruction))


def metadata_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """What the source holds beside text and picture; None for a candidate of an ingested source."""
    return read_json(row["metadata"] or "{}") if "metadata" in row else None


def own_student(card: dict[str, Any], index: Artifact, found: Path | None = None) -> Path:
    """The directory of the student that made the index of a user's own corpus, `found` if it is not the card's.

    Raises InputError where it is gone, or holds another student by now.
    """
    directory = found or Path(card["student"]["directory"])
    if not directory.is_dir():
        raise InputError(
            f"the student of the index {index.uri}, {directory}, is gone; give its place by student=DIRECTORY"
        )
    check_student(directory)
    if identify(directory) != card["student"]["identity"]:
        raise InputError(
            f"{directory} holds another student than the one that made the index {index.uri}; index again"
        )
    return directory


def made_from(
    card: dict[str, Any], index: Artifact, ingest: Artifact | None, train: Artifact | None
) -> tuple[Artifact, Artifact]:
    """The artifacts of the student and of the candidates. Raises InputError where one was written anew since."""
    if train is None or ingest is None:
        raise InputError(f"the index {index.uri} needs the artifacts of train and ingest that it was made from")
    for artifact in (train, ingest):
        if card[artifact.stage]["attempt"] != artifact.manifest["attempt"]:
            raise InputError(f"the index is older than its {artifact.stage}: run `python pipeline/run.py` again first")
    return train, ingest


def teacher_of(card: dict[str, Any], backbone: Artifact) -> Path:
    """The model directory of the teacher that the candidates of an index are from; `card["candidates"]` has the layer.

    Raises InputError where the backbone was written anew since, or points to another checkpoint by now.
    """
    named = candidate_model(card)
    if backbone.manifest["attempt"] != named["attempt"]:
        raise InputError("the index is older than its backbone: run `python pipeline/run.py` again first")
    directory = checkpoint.directory(backbone)
    if identify(directory) != named["identity"]:
        raise InputError(f"{directory} holds another teacher than the one whose vectors are indexed; index again")
    return directory


class Retriever:
    """A student, its index and what the candidates show. Loading reads the model; each search reads the vectors."""

    def __init__(
        self, encoder: "Encoder", index: Index, card: dict[str, Any], candidates: MappedTable, images: MappedTable
    ) -> None:
        self.encoder, self.index, self.card = encoder, index, card
        self.candidates, self.images = candidates, images
        self.instructions = Instructions.from_json(card["instructions"])

    @classmethod
    def load(
        cls,
        index: Artifact,
        ingest: Artifact | None = None,
        train: Artifact | None = None,
        backend: str = "",
        student: Path | None = None,
    ) -> "Retriever":
        """Opens an index artifact with the candidates and the student that it was made from.

        An index of a user's own corpus holds its candidates and names its student: `ingest` and `train` stay out.
        The model runs on the GPU where this machine has one, whatever the machine had that made the index.

        Args:
            backend: exact, lance or faiss instead of the one that the index was made for.
            student: the directory of the student of a user's own corpus, where it is not the one of the card.

        Raises:
            InputError: no index, one of another student, or the student or the candidates were written anew since.
        """
        card = read_card(index)
        if "student" in card:
            model, source = own_student(card, index, student), index
        else:
            trained, source = made_from(card, index, ingest, train)
            model = trained.local("model")
        searched = open_index(index, card, backend)
        encoder = load_encoder_here(model)
        if encoder.dim != card["dim"] or searched.dim != card["dim"]:
            raise InputError(f"the index {index.uri} has {searched.dim} numbers a vector, the student {encoder.dim}")
        candidates = MappedTable.open(source, "candidates", "did")
        return cls(encoder, searched, card, candidates, MappedTable.open(source, "images", "image_id"))

    def search(
        self,
        text: str | None = None,
        image: bytes | None = None,
        want: str | None = None,
        k: int = 10,
        where: Mapping[str, object] | None = None,
    ) -> list[Result]:
        """The k best candidates for a text, an encoded picture or both, of the wanted modality or the likeliest one.

        `where` keeps results to those that meet conditions on columns, `{"brand": "Arla", "price": {"<": 20}}`.
        Raises InputError for a query that can't be asked.
        """
        checked = None if image is None else check_image(image, "the image", ImageLimits())
        return self.find(self.ask(check_query(text, want, k, checked is not None), checked, want, where), k)

    def ask(
        self, text: str | None, image: Checked | None, want: str | None, where: Mapping[str, object] | None = None
    ) -> Query:
        """The query with its instruction.

        Raises InputError where nothing of the wanted modality is indexed, or a condition can't be checked.
        """
        if want is not None and want not in self.card["modalities"]:
            held = " ".join(sorted(self.card["modalities"]))
            raise InputError(f"the index holds no candidate of modality {want}; it holds: {held}")
        asking = modality_of(text, image)
        target = want or self.choose_target(asking)
        instruction = self.instructions.any(asking, target) if target else None
        chosen = filter_of(where or {}, self.card, (target,) if target else ())
        return Query(text, image, target, instruction, chosen)

    def choose_target(self, asking: str) -> str | None:
        """The modality to find where the person does not say; None for any, where training knew no such task.

        The first of PREFERRED that the index holds and that the training data had an instruction for. Results are
        kept to it: the instruction asks for this kind, and scores of different kinds do not compare.
        """
        held = [modality for modality in PREFERRED if modality in self.card["modalities"]]
        return next((modality for modality in held if self.instructions.any(asking, modality)), None)

    def find(self, query: Query, k: int) -> list[Result]:
        """The k best candidates of a checked query."""
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[Query], k: int) -> list[list[Result]]:
        """The k best candidates of each checked query: one forward pass, and one search for each different filter."""
        vectors_QD = self.embed_many([row_of(query) for query in queries])
        results: list[list[Result]] = [[] for _ in queries]
        for chosen in dict.fromkeys(query.filter for query in queries):
            places = [place for place, query in enumerate(queries) if query.filter == chosen]
            ranking = self.index.search(vectors_QD[places], k, chosen)[0]
            for place, dids, scores in zip(places, ranking.dids, ranking.scores, strict=True):
                results[place] = self._resolve(dids, scores)
        return results

    def embed_many(self, rows: Sequence[Row]) -> np.ndarray:
        """Vectors of unit length, float32 [N, D]."""
        return self.encoder.encode(rows, max(1, len(rows)))

    def examples(self, count: int) -> list[Result]:
        """About `count` indexed candidates, spread over the first stored rows, pictures first; their score is 0."""
        held = [kind for kind in PREFERRED if kind in self.card["modalities"]]
        dids: dict[str, list[str]] = {kind: [] for kind in held}
        seen = 0
        for batch in self.candidates.batches:
            pooled = keep_pools(pa.Table.from_batches([batch]), list(self.card["pools"]))
            for did, kind in zip(pooled["did"].to_pylist(), pooled["modality"].to_pylist(), strict=True):
                dids[kind].append(did)
            seen += pooled.num_rows
            if seen >= LOOKED_AT:
                break
        share, chosen = -(-count // len(held)), []
        for place, of_kind in enumerate(dids.values()):
            step = max(1, len(of_kind) // share)
            chosen += of_kind[place * step // len(held) :: step][:share]  # not the same things of every kind
        return self._resolve(chosen, [0.0] * len(chosen))

    def image_ids(self) -> Iterator[list[str]]:
        """The pictures of the indexed candidates, in blocks."""
        for batch in self.candidates.batches:
            pooled = keep_pools(pa.Table.from_batches([batch]), list(self.card["pools"]))
            yield pooled["image_id"].drop_null().to_pylist()

    def picture(self, image_id: str) -> tuple[bytes, str]:
        """Encoded bytes and format of a picture. Raises KeyError."""
        row = self.images.row(self.images.find(image_id))
        return row["bytes"], row["format"]

    def _resolve(self, dids: Sequence[str], scores: Sequence[float]) -> list[Result]:
        rows = [self.candidates.row(self.candidates.find(did)) for did in dids]
        return [
            Result(row["did"], float(score), row["text"], row["image_id"], row["modality"], metadata_of(row))
            for row, score in zip(rows, scores, strict=True)
        ]
