"""Search from Python by the address of an index:

    from pipeline.retriever import Retriever
    Retriever.load(".puma/store/index/0123456789abcdef").search(text="a red circle", want="image", k=5)

The address is the `uri` that `run.py --json` and `store.py ls` print. What the index was made from is looked up in the
same store, so a store may be moved as a whole.

`export_router` writes both models of an index with `index.candidates=teacher` for sentence-transformers.
"""

from pathlib import Path
from typing import Any, cast

from pipeline.artifacts.store import Artifact, Store, open_store
from pipeline.lookup.indexes import index_inputs
from pipeline.lookup.students import index_student
from stages.contract.context import InputError
from stages.search import retriever
from stages.search.backends import read_card
from stages.search.card import candidate_model, holds_teacher


class Retriever(retriever.Retriever):
    """A student, its index and what the candidates show; see `stages.search.retriever.Retriever.search`."""

    @classmethod
    def load(  # type: ignore[override]
        cls, uri: str, backend: str = "", student: str = "", endpoint: str = ""
    ) -> "Retriever":
        """Opens the index at `uri` with the student that made it.

        Args:
            uri: `{store}/index/{key}`.
            backend: exact, lance or faiss instead of the one that the index was made for.
            student: where the student of a corpus of your own lies by now, if it was moved.
            endpoint: the S3 server of a store in a bucket, as `store_endpoint` of the run.

        Raises:
            InputError: there is no index, it is of another student, or what it was made from is gone or newer.
        """
        store, index = open_uri(uri, endpoint)
        card = read_card(index)
        found = index_student(store, card, student)
        loaded = super().load(index, *index_inputs(store, card), backend=backend, student=found)
        return cast(Retriever, loaded)


def open_uri(uri: str, endpoint: str = "") -> tuple[Store, Artifact]:
    """The store and the index of an address. Raises InputError where it is none of an index."""
    place, _, key = uri.rstrip("/").rpartition("/")
    root, _, stage = place.rpartition("/")
    if stage != "index":
        raise InputError(f"{uri} is not the address of an index, which ends in /index/KEY; store.py ls shows all")
    store = open_store(root or "/", endpoint)
    return store, store.artifact("index", key)


def export_router(uri: str, directory: str, endpoint: str = "") -> dict[str, Any]:
    """Writes student and teacher of the index at `uri` as one directory for `SentenceTransformer(directory)`.

    `encode_query` goes through the student, `encode_document` through the teacher at the layer that was indexed.

    Args:
        uri: `{store}/index/{key}` of a run with `index.candidates=teacher`.
        directory: a new one. The weights of both models are copied to it, so it can be moved and published.
        endpoint: the S3 server of a store in a bucket, as `store_endpoint` of the run.

    Returns:
        The least cosine between what sentence-transformers reads and the pipeline's vectors, for each of the two.

    Raises:
        InputError: the candidates are the student's, a model is gone or newer, or the directory holds something.
    """
    from stages.distributed.rotation import read_rotation
    from stages.export.router import write_router

    store, index = open_uri(uri, endpoint)
    card = read_card(index)
    if not holds_teacher(card):
        raise InputError(
            f"the candidates of {uri} are the student's own, and its directory reads both sides;"
            " give an index made with index.candidates=teacher"
        )
    named = candidate_model(card)
    train, _ = retriever.made_from(card, index, *index_inputs(store, card))
    teacher = retriever.teacher_of(card, store.artifact("backbone", named["key"]))
    read = (named["layer"], named["mean"], read_rotation(train))
    return write_router(Path(directory), train.local("model"), teacher, *read)
