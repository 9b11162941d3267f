"""What Puma uses of Ray without being promised it: each test fails with the version that took it away."""

import importlib.util
import logging

import pytest
import ray

from pipeline.execution import compat

GONE = f"Ray {ray.__version__} took away {{}}; see pipeline/execution/compat.py"


def test_jobs_are_known_by_their_environment_variable(monkeypatch):
    from ray._private.runtime_env import constants

    name = getattr(constants, "RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    assert name == compat.JOB_VARIABLE, GONE.format("the variable of a submitted job")
    monkeypatch.setenv(compat.JOB_VARIABLE, "{}")
    assert compat.inside_job()


@pytest.mark.parametrize("name", compat.TALKATIVE)
def test_the_loggers_are_called_as_their_modules(name):
    assert importlib.util.find_spec(name), GONE.format(f"the module {name}, whose logger is quieted")


def test_ray_data_writes_to_the_terminal_by_its_own_handler():
    from ray.data._internal.logging import configure_logging

    configure_logging()
    handlers = [one for one in logging.getLogger("ray.data").handlers if type(one).__name__ == compat.CONSOLE]
    assert handlers, GONE.format(f"the handler {compat.CONSOLE} of ray.data")
    compat.quiet_loggers()
    assert [one.level for one in handlers] == [logging.WARNING] * len(handlers)


def test_lines_of_workers_go_through_a_dispatcher():
    from ray._private import ray_logging, worker

    dispatcher = getattr(ray_logging, "global_worker_stdstream_dispatcher", None)
    assert dispatcher is not None and hasattr(worker, "print_to_stdstream"), GONE.format("the dispatcher of lines")
    before, printed = list(dispatcher.handlers), []
    dispatcher.handlers = [(compat.PRINTER, printed.append)]
    try:
        compat.filter_worker_lines(lambda batch: [line for line in batch["lines"] if "x" in line])
        for lines in (["ax", "b"], ["c"]):
            dispatcher.emit({"lines": lines, "pid": 1})
    finally:
        dispatcher.handlers = before
    assert printed == [{"lines": ["ax"], "pid": 1}], GONE.format("how handlers of lines are kept and called")
