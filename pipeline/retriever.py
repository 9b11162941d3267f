"""Search from Python by the address of an index:

    from pipeline.retriever import Retriever
    Retriever.load(".puma/store/index/0123456789abcdef").search(text="a red circle", want="image", k=5)

The address is the `uri` that `run.py --json` and `store.py ls` print. What the index was made from is looked up in the
same store, so a store may be moved as a whole.
"""

from typing import cast

from pipeline.artifacts.store import open_store
from pipeline.lookup.indexes import index_inputs
from pipeline.lookup.students import index_student
from stages.contract.context import InputError
from stages.search import retriever
from stages.search.backends import read_card


class Retriever(retriever.Retriever):
    """A student, its index and what the candidates show; see `stages.search.retriever.Retriever.search`."""

    @classmethod
    def load(cls, uri: str, backend: str = "", student: str = "") -> "Retriever":  # type: ignore[override]
        """Opens the index at `uri` with the student that made it.

        Args:
            uri: `{store}/index/{key}`.
            backend: exact, lance or faiss instead of the one that the index was made for.
            student: where the student of a corpus of your own lies by now, if it was moved.

        Raises:
            InputError: there is no index, it is of another student, or what it was made from is gone or newer.
        """
        place, _, key = uri.rstrip("/").rpartition("/")
        root, _, stage = place.rpartition("/")
        if stage != "index":
            raise InputError(f"{uri} is not the address of an index, which ends in /index/KEY; store.py ls shows all")
        store = open_store(root or "/")
        index = store.artifact("index", key)
        card = read_card(index)
        found = index_student(store, card, student)
        loaded = super().load(index, *index_inputs(store, card), backend=backend, student=found)
        return cast(Retriever, loaded)
