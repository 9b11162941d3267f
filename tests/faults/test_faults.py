"""Something breaks while a command computes a stage; the same command then ends with the same artifact.

`python -m pytest -m faults`, as root, in less than an hour on two cores; `-k "train and S3"` is a part of it. Each
case computes one stage, on a copy of what a whole run has made before it.
"""

import os
import time
from pathlib import Path

import pytest

from tests.faults.cases import CASES, DONE, FAILED, KILLED, Case
from tests.faults.outcomes import Outcome, keep
from tests.faults.same import assert_same
from tests.faults.world import STEPS, World, copied

pytestmark = [
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1000),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which takes root"),
]
STATUS = {DONE: "finished", FAILED: "failed"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_after_a_fault_the_same_command_ends_with_the_same_artifact(
    case: Case, whole: World, home: Path, made: list[str], request: pytest.FixtureRequest
) -> None:
    servers = request.getfixturevalue(case.needs) if case.needs else None
    world = copied(whole, home, case.stage, servers.address if case.needs == "bucket" else "")
    if servers:
        servers.attach(world)
        world.servers = servers
    curves = servers.curves(case.stage) if case.needs == "mlflow" else []
    with world.later:
        begun = time.monotonic()
        with case.fault(world) as look:
            code = world.run("first", look)
        again = world.run("again")
        outcome = Outcome(
            name=case.name,
            code=code,
            said=world.line("first"),
            again=world.line("again"),
            repeated=world.repeated("first", "again"),
            seconds=time.monotonic() - begun,
        )
        check(case, world, outcome, again)
        if case.again == DONE:
            assert_same(world.store, whole.store, case.stage)
    if case.needs == "mlflow":
        told = servers.curves(case.stage)[len(curves) :]
        steps = [*range(1, STEPS + 1), STEPS]  # the last one is told by the training, and with the finished stage
        assert told[0] == steps, "a step is lost or doubled in MLflow"
        assert len(told) == 2, "each of the two commands has one run of the stage"
    keep(outcome)
    made.append(case.name)


def check(case: Case, world: World, outcome: Outcome, again: int) -> None:
    """How both commands ended, what they said, and how much was done twice."""
    assert outcome.code in case.codes, world.said("first")[-4000:]
    assert again == case.again, world.said("again")[-4000:]
    if outcome.code not in (DONE, KILLED):
        assert case.says in outcome.said and world.said("first").count("\nerror: ") == 1, world.said("first")[-4000:]
    if outcome.code != DONE:
        assert case.kept in world.said("again"), world.said("again")[-4000:]
    if case.again == FAILED:
        assert outcome.again == outcome.said and world.arrived() >= 1, world.said("again")[-4000:]
    assert outcome.repeated <= case.repeats
    assert world.statuses()[-1] == STATUS[again] and "running" not in world.statuses()
