"""One rank that finds a rotation by its own share of rows: `python -m tests.turning_world CASE_JSON`."""

import json
import sys
from pathlib import Path

from stages.learn.collectives import rank, world_size
from stages.learn.turning import find_rotation
from tests.support import joined_ranks

STEP = 8


def main(case: dict) -> None:
    """Rank 0 writes the rotation between two clouds that are the same on every rank."""
    from tests.unit.test_learn_turning import cloud, orthogonal

    with joined_ranks():
        student, share = cloud(), STEP // world_size()
        teacher = student @ orthogonal(12).T + cloud(seed=9) / 4

        def own(step: int) -> slice:
            return slice(STEP * step + rank() * share, STEP * step + (rank() + 1) * share)

        found = find_rotation(lambda rows: teacher[rows], lambda rows: student[rows], own, STEP)
        if rank() == 0:
            Path(case["result"]).write_text(json.dumps(found.rotation.tolist()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
