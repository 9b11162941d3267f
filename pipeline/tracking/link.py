"""The connection to MLflow: it fails at most once, and then events wait on disk.

Tracking never breaks a run and never holds it up. The first event that fails is named in one line, from there on they
are kept on disk (spool.py), and the next run that reaches the server sends them.
"""

import json
import logging
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pipeline.tracking.events import EXPERIMENT, apply_event, sqlite_file
from pipeline.tracking.spool import OFFLINE, Spool, renamed
from pipeline.wording import one_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CONNECT_SECONDS, ANSWER_SECONDS = 2, 3
UNREACHABLE = "can't be reached, what it would track is kept for the next run"
REFUSED = "refuses something to track, which is lost, and of the next ones nothing is said"

Result = TypeVar("Result")


class Link:
    """A connection to MLflow that fails at most once: it says so in one line, and all later events wait on disk.

    What the server refuses though it answers is no such failure: it would refuse that again, and take the rest.
    """

    def __init__(self, uri: str, create: bool = False) -> None:
        self.uri, self.create, self.broken, self.refused = uri, create, False, False
        self.spool = Spool(uri)
        self._client: MlflowClient | None = None

    def for_worker(self) -> "Link":
        """A connection of its own to the same place, for another process: it never makes an SQLite file."""
        link = Link(self.uri)
        link.broken = self.broken
        return link

    def __getstate__(self) -> dict[str, Any]:
        return self.for_worker().__dict__

    def __call__(self, action: "Callable[[MlflowClient], Result]") -> Result | None:
        """The result of `action(client)`, or None once MLflow has failed."""
        if self.broken:
            return None
        try:
            self._client = self._client or connect(self.uri, self.create)
            return action(self._client)
        except Exception as error:  # whatever MLflow, SQLAlchemy or the network may raise
            self.broken = not is_refusal(error)
            text = one_line(f"{type(error).__name__}: {error}", 200)
            if self.broken or not self.refused:
                print(f"warning: {self.uri} {UNREACHABLE if self.broken else REFUSED}: {text}", file=sys.stderr)
            self.refused = True
            return None

    def send(self, verb: str, run: str, **values: Any) -> Any:
        """Sends an event, see `events.ACTIONS`; keeps it on disk where MLflow can't be reached. Never raises."""
        event = {"verb": verb, "run": run, "at": int(time.time() * 1000), **values}
        if OFFLINE in json.dumps([run, values.get("tags")]):
            event = renamed(event, self.spool.ids())
        done = self(lambda client: apply_event(client, event))
        self.broken = self.broken or (verb == "create" and done is None)  # without it nothing else has a place
        if self.broken:
            self.spool.write(event)
        return done

    def deliver(self) -> None:
        """Sends what earlier runs had to keep."""
        arrived = self(lambda client: self.spool.deliver(partial(apply_event, client), partial(is_answering, client)))
        if arrived:
            print(f"{arrived} events of earlier runs were sent to {self.uri}", file=sys.stderr)
        self.spool.expire()


def connect(uri: str, create: bool) -> "MlflowClient":
    """A client; with `create` an SQLite file is created where there is none, as on the machine that starts the run."""
    # A server that is gone must cost a few seconds, not the minutes of the default eight tries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # as with Ray: no usage statistics
    check_reachable(uri)
    database = sqlite_file(uri)
    if database and not create and not database.exists():
        raise FileNotFoundError(f"{database} is not on this machine; many machines need a tracking server")
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database)) as probe:  # MLflow tries for 100 s before it says what is wrong
            probe.execute("PRAGMA user_version").fetchone()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets its own levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def check_reachable(uri: str) -> None:
    """Raises OSError within seconds where no server listens or answers; MLflow would wait for each of its tries."""
    address = urlsplit(uri)
    if address.scheme in ("http", "https") and address.hostname:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=CONNECT_SECONDS).close()
        import requests  # as MLflow does

        with suppress(requests.exceptions.SSLError):  # an answer too, and MLflow may know the certificate
            health, patience = f"{uri.rstrip('/')}/health", (CONNECT_SECONDS, ANSWER_SECONDS)
            requests.get(health, timeout=patience, stream=True, allow_redirects=False).close()


def is_refusal(error: Exception) -> bool:
    """Whether MLflow answered, and will answer the same next time: it asks for something else, not for patience."""
    status = getattr(error, "get_http_status_code", lambda: 500)()
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def is_answering(client: "MlflowClient") -> bool:
    """Whether MLflow answers."""
    try:
        client.get_experiment_by_name(EXPERIMENT)
    except Exception:  # whatever MLflow or the network may raise
        return False
    return True
