"""The rotation between a teacher's vectors and its student's, where the stages after distillation meet it.

`distill` finds it (`stages.learn.turning`), and a student keeps its directions from then on: the artifact of each of
its stages holds `rotation.npy`, float32 [T, D]. A teacher's vector times it is what the student was to give.
"""

from pathlib import Path

import numpy as np

from stages.contract.context import Artifact, Attempt

ROTATION = "rotation.npy"


def keep_rotation(output: Attempt, trained: Path | None, given: np.ndarray | None) -> bool:
    """Writes the rotation to a student's artifact; whether there is one.

    Args:
        output: of `distill` or `train`.
        trained: the directory in which a training may have left it.
        given: that of the stage before.
    """
    if given is not None:
        with output.open(ROTATION) as file:
            np.save(file, given)
    elif trained and (trained / ROTATION).exists():
        output.upload(trained / ROTATION, ROTATION)
    else:
        return False
    return True


def read_rotation(student: Artifact) -> np.ndarray | None:
    """The rotation of an artifact of `distill` or `train`; None where the teacher was not turned."""
    return np.load(student.local(ROTATION)) if student.manifest["metrics"].get("turned") else None
