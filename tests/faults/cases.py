"""The table: which stage meets which fault, and how the command that met it may end."""

import signal
from dataclasses import dataclass

from tests.e2e.test_pipeline import STAGES
from tests.faults import kinds
from tests.faults.world import EVERY, STEPS, TRAININGS, Fault

KILLED, DONE, FAILED, INTERRUPTED = -signal.SIGKILL, 0, 1, 130


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        stage: the stage that meets the fault.
        what: the fault in words.
        fault: the fault.
        codes: exit codes with which the command that met it may end.
        needs: a fixture: `bucket`, `nodes` or `mlflow`; empty for Ray and a store of the case's own.
        says: what the error must name, where the command ends with one.
        again: exit code of the same command afterwards.
        repeats: the most steps of a training that a restart makes once more.
        kept: what the same command says where it takes over what the one that did not finish had stored.
    """

    stage: str
    what: str
    fault: Fault
    codes: tuple[int, ...]
    needs: str = ""
    says: str = ""
    again: int = DONE
    repeats: int = EVERY - 1
    kept: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage}: {self.what}"


EITHER = (DONE, FAILED)
"""The run goes on by itself, or says what went wrong and the same command goes on."""
KEPT = {
    "ingest": "pictures were checked before",
    "features": "shards of features/",
    "index": "shards of embeddings",
    **dict.fromkeys(TRAININGS, "goes on from checkpoint"),
}
"""By stage, of faults that wait until something is stored; what `evaluate` takes over it does not tell."""


def kept(stage: str) -> str:
    return KEPT.get(stage, "")


def processes() -> list[Case]:
    """Processes of the command's own Ray, and the command itself."""
    pools = ("features", "index", "evaluate")
    return [
        *(Case(stage, "driver killed", kinds.driver(), (KILLED,), kept=kept(stage)) for stage in STAGES),
        Case(
            "train",
            "driver ended by SIGTERM",
            kinds.driver(signal.SIGTERM),
            (INTERRUPTED,),
            says="interrupted",
            kept=kept("train"),
        ),
        Case("ingest", "task killed", kinds.process(kinds.TASK), (DONE,)),
        Case(
            "ingest",
            "actor killed that knows which pictures are done",
            kinds.process(kinds.LEDGER, at_once=True),
            EITHER,
        ),
        *(Case(stage, "actor killed that holds the model", kinds.process(kinds.ACTOR), EITHER) for stage in pools),
        *(Case(stage, "training process killed", kinds.process(kinds.WORKER), (DONE,)) for stage in TRAININGS),
        Case("train", "controller of the training killed", kinds.process(kinds.CONTROLLER), EITHER),
        Case("train", "export killed", kinds.process(kinds.EXPORT, at_once=True), EITHER),
        Case("evaluate", "ranking task killed", kinds.process(kinds.RANKING, at_once=True), EITHER),
    ]


def servers() -> list[Case]:
    """The bucket, and MLflow."""
    often = {
        "S3 answers 500": kinds.bucket("500"),
        "S3 answers 503": kinds.bucket("503"),
        "S3 slow": kinds.bucket("slow"),
        "S3 truncates": kinds.bucket("truncate", 3, "GET"),
    }
    pairs = [("train", what) for what in often]
    pairs += [("features", "S3 answers 500"), ("features", "S3 truncates"), ("ingest", "S3 answers 503")]
    pairs += [("index", "S3 slow"), ("evaluate", "S3 truncates")]
    away = {"at the start": (True, False), "from the middle on": (False, True), "throughout": (True, True)}
    return [
        # Objects are read again where they break off; botocore asks no second time for a list that does.
        *(
            Case(stage, what, often[what], EITHER if what == "S3 truncates" else (DONE,), "bucket")
            for stage, what in pairs
        ),
        # While nobody can store a checkpoint a training goes on until the tries are over.
        Case("train", "S3 away from the middle on", kinds.server_gone, (FAILED,), "bucket", "train", repeats=STEPS),
        *(
            Case("train", f"MLflow away {when}", kinds.mlflow_away(*how), (DONE,), "mlflow")
            for when, how in away.items()
        ),
    ]


def disks_and_numbers() -> list[Case]:
    """A disk that gets full, and a loss that is no number."""
    full, stopped = "no space is left", "not finite; lower learning_rate, which is 1e+30; the checkpoint of step"
    return [
        *(
            Case(stage, "disk of the store full", kinds.full_store, (FAILED,), says=full, kept=kept(stage))
            for stage in ("ingest", "features", "evaluate")
        ),
        # The checkpoint that found no room is the whole interval; what is deleted after it can be room for the next.
        Case("train", "disk of one worker full", kinds.full_worker, EITHER, says=full, repeats=EVERY),
        Case("train", "disk of the cache full", kinds.full_cache, (FAILED,), "bucket", full),
        *(Case(stage, "loss is NaN", kinds.too_fast, (FAILED,), says=stopped, again=FAILED) for stage in TRAININGS),
    ]


def nodes() -> list[Case]:
    """Nodes of a cluster that the command joins."""
    return [
        *(Case(stage, "node killed", kinds.node_lost, (DONE,), "nodes") for stage in STAGES),
        *(
            Case(stage, "spot node leaves with notice", kinds.node_leaves_with_notice, (DONE,), "nodes")
            for stage in ("features", "train")
        ),
        *(Case(stage, "node added", kinds.node_added, (DONE,), "nodes") for stage in ("features", "train")),
    ]


CASES = [*processes(), *disks_and_numbers(), *servers(), *nodes()]
