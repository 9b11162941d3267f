"""Which index is served. Picklable: on Ray every replica loads it by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.garbage import registered_name
from pipeline.artifacts.store import Artifact, Store
from pipeline.lookup.indexes import open_retriever
from stages.contract.context import InputError, StageError
from stages.search.card import candidate_model, holds_teacher

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipeline.web.engine import Engine
    from pipeline.web.guard import Access
    from pipeline.web.limits import RequestLimits
    from pipeline.web.meters import Meters
    from stages.search.retriever import Retriever


@dataclass(frozen=True)
class ServedIndex:
    """The artifacts of a run, and what answers: `backend` instead of the index's own, `student` instead of its."""

    store: Store
    keys: dict[str, str]
    compare: bool
    backend: str = ""
    student: str = ""

    def app(self, access: "Access", batch: int) -> "FastAPI":
        """The application; whatever is wrong with the store is raised here, before a server starts."""
        from pipeline.web.app import build_app
        from pipeline.web.limits import RequestLimits
        from pipeline.web.meters import Meters

        limits, meters = RequestLimits(batch=batch), Meters()
        return build_app(self.load(limits, meters), access, limits, meters)

    def load(self, limits: "RequestLimits", meters: "Meters") -> "Engine":
        """Loads student and index, and prepares the teacher where there is one."""
        from pipeline.web.engine import Engine

        student = open_retriever(self.store, self.keys["index"], self.backend, self.student)

        def teacher() -> "Retriever":
            try:
                return self.load_teacher(student)
            except InputError as error:  # whoever asks is not to blame
                raise StageError(str(error)) from error

        registered = self.registered(student.card)
        return Engine(student, teacher if self.has_teacher() else None, self.keys["index"], limits, meters, registered)

    def registered(self, card: Mapping[str, Any]) -> str:
        """The name in the registry of the student that made an index; empty where it has none."""
        made = card["student"] if "student" in card else {"stage": "train", **card["train"]}
        if "key" not in made:  # a directory that no store knows
            return ""
        return registered_name(self.store, made["stage"], made["key"], made["attempt"])

    def artifact(self, stage: str) -> Artifact:
        """What the run made in a stage."""
        return self.store.artifact(stage, self.keys[stage])

    def has_teacher(self) -> bool:
        """Whether this index holds the teacher's vectors, or evaluate stored those of this very teacher for it."""
        stages = ("evaluate", "backbone", "index")
        card = self.artifact("index").read_json("retriever.json")
        if self.compare and holds_teacher(card):
            there = self.store.has("backbone", self.keys["backbone"])
            return there and self.artifact("backbone").attempt == candidate_model(card)["attempt"]
        if not self.compare or not all(self.store.has(stage, self.keys.get(stage, "")) for stage in stages):
            return False
        evaluate, *used = map(self.artifact, stages)
        compared = evaluate.manifest["inputs"]
        same = all(compared[made.stage] == {"key": made.key, "attempt": made.attempt} for made in used)
        return same and "teacher" in evaluate.read_json("teacher.json")

    def load_teacher(self, student: "Retriever") -> "Retriever":
        """The full-depth model over the same candidates, by the vectors that evaluate compared.

        Where the index holds the teacher's own, the teacher at their layer, over this index.
        """
        from stages.distributed.rotation import read_rotation
        from stages.model import checkpoint
        from stages.model.loading import load_encoder_here
        from stages.model.taught import Taught
        from stages.search.exact import ExactIndex
        from stages.search.retriever import Retriever, teacher_of

        if holds_teacher(student.card):
            read, directory = student.card["candidates"], teacher_of(student.card, self.artifact("backbone"))
            rotation = read_rotation(self.artifact("train"))
            taught = Taught(load_encoder_here(directory, read["layer"]), read["mean"], rotation)
            return Retriever(taught, student.index, student.card, student.candidates, student.images)
        encoder = load_encoder_here(checkpoint.directory(self.artifact("backbone")))
        key = self.artifact("evaluate").read_json("teacher.json")["teacher"]
        index = ExactIndex.open(self.store.artifact("teacher", key)).ready()
        return Retriever(encoder, index, student.card, student.candidates, student.images)
