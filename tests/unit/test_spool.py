"""What could not be sent to MLflow, in files of several processes: nothing is lost, in whatever order they end."""

import json
import os

import pytest

from pipeline.tracking import spool
from pipeline.tracking.spool import OFFLINE, Spool

RUN, STAGE = f"{OFFLINE}run", f"{OFFLINE}stage"
DRIVER = [
    {"verb": "create", "run": RUN, "at": 1, "name": "demo", "tags": {}},
    {"verb": "create", "run": STAGE, "at": 2, "name": "train", "tags": {"mlflow.parentRunId": RUN}},
    {"verb": "end", "run": STAGE, "at": 9, "status": "FINISHED"},
]
WORKER = [{"verb": "metrics", "run": STAGE, "at": at, "values": {"loss": 1.0}, "step": at} for at in (5, 6)]


class Server:
    """What MLflow was told: (verb, run) of each event; runs get names of its own."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def apply(self, event: dict) -> str:
        if event["verb"] != "create" and event["run"].startswith(OFFLINE):
            raise ValueError("there is no such run")
        self.told.append((event["verb"], event["run"]))
        return f"server's {event['name']}" if event["verb"] == "create" else ""


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Spool:
    """The driver's file, and that of a training process, which ended before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Spool("http://server")
    made.directory.mkdir(parents=True)
    for writer, events, ended in (("2-0", WORKER, 100), ("1-0", DRIVER, 200)):
        place = made.directory / f"{writer}.jsonl"
        place.write_text("".join(f"{json.dumps(event)}\n" for event in events))
        os.utime(place, (ended, ended))
    return made


def delivered(kept: Spool, server: Server) -> int:
    return kept.deliver(server.apply, lambda: True)


SENT = [("create", RUN), ("create", STAGE), ("end", "server's train"), *[("metrics", "server's train")] * 2]


def test_a_curve_is_sent_after_its_run_though_its_writer_ended_first(kept, monkeypatch):
    monkeypatch.setattr(spool, "alive", lambda writer: False)
    server = Server()
    assert delivered(kept, server) == 5
    assert server.told == SENT
    assert not list(kept.directory.glob("*.jsonl"))


def test_a_curve_waits_for_a_run_whose_driver_still_works(kept, monkeypatch):
    server, living = Server(), ["1-0"]
    monkeypatch.setattr(spool, "alive", living.__contains__)
    assert delivered(kept, server) == 0 and server.told == []
    living.clear()
    assert delivered(kept, server) == 5 and server.told == SENT


def test_half_a_line_of_a_killed_process_holds_nothing_up(kept, monkeypatch):
    monkeypatch.setattr(spool, "alive", lambda writer: False)
    with (kept.directory / "2-0.jsonl").open("a") as file:
        file.write('{"verb": "metr')
    (kept.directory / "3-0.jsonl").write_text('{"ve')
    assert delivered(kept, Server()) == 5
    assert not list(kept.directory.glob("*.jsonl"))


def test_numbers_of_a_run_that_the_server_refuses_are_dropped(kept, monkeypatch):
    monkeypatch.setattr(spool, "alive", lambda writer: False)
    server = Server()
    server.apply = lambda event: (_ for _ in ()).throw(ValueError("no"))
    assert delivered(kept, server) == 0
    assert not list(kept.directory.glob("*.jsonl"))
