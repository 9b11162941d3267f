"""What Puma uses of Ray that Ray does not promise to keep; tests/unit/test_compat.py says what a version took away."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's environment variable is really called that
TALKATIVE = {
    "ray._private.authentication": "says in every local run that its cluster asks for a token, which Ray made itself",
    "ray.data._internal.progress": "says that there are no progress bars",
}
"""Loggers of which only errors are shown, and what else they would say."""
CONSOLE = "PlainRayHandler"  # the class of Ray Data's handler that writes to the terminal
PRINTER = "ray_print_logs"  # the name of the handler that prints what workers print


def inside_job() -> bool:
    """Whether this process is the entrypoint of a submitted job."""
    return bool(os.environ.get(JOB_VARIABLE))


def quiet_loggers() -> None:
    """Shows neither what is no news to the user nor Ray Data's plans, which stay in its log files."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == CONSOLE:
            handler.setLevel(logging.WARNING)


def filter_worker_lines(keep: Callable[[Mapping[str, Any]], list[str]]) -> None:
    """Of what workers print, shows the lines that `keep(batch)` gives; Ray knows only all of it or nothing.

    A batch has `lines`, `pid` and, of actors, `actor_name`.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    print_all = dict(dispatcher.handlers)[PRINTER]

    def print_kept(batch: Mapping[str, Any]) -> None:
        if lines := keep(batch):
            print_all({**batch, "lines": lines})

    dispatcher.remove_handler(PRINTER)
    dispatcher.add_handler(PRINTER, print_kept)  # under Ray's own name, so that its shutdown removes it
