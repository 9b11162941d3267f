"""What could not be sent to MLflow, in files of several processes: nothing is lost, in whatever order they end."""

import json
import os

import pytest

from pipeline.tracking import client, spool
from pipeline.tracking.client import PipelineRun
from pipeline.tracking.spool import OFFLINE, REGISTERED, Spool

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


def test_a_file_that_another_run_deletes_meanwhile_stops_nobody(kept, monkeypatch):
    monkeypatch.setattr(spool, "alive", lambda writer: False)
    (kept.directory / "3-0.jsonl").symlink_to("gone")  # listed, and not there when it is looked at
    assert delivered(kept, Server()) == 5
    kept.expire()


def test_a_text_with_other_ends_of_lines_arrives_whole(kept, monkeypatch):
    content, told = "one\u2028two\u0085three\rfour", []
    kept.write({"verb": "text", "run": "known", "at": 1, "name": "notes.txt", "content": content})
    monkeypatch.setattr(spool, "alive", lambda writer: writer in ("1-0", "2-0"))
    assert kept.deliver(told.append, lambda: True) == 1 and told[0]["content"] == content


def test_a_run_whose_registration_is_refused_late_is_not_said_to_have_registered(kept, monkeypatch):
    asked = [{"verb": "register", "run": STAGE, "at": 10}, {"verb": "tags", "run": RUN, "tags": {REGISTERED: "x"}}]
    with (kept.directory / "1-0.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(event)}\n" for event in asked)
    monkeypatch.setattr(spool, "alive", lambda writer: False)
    server, whole = Server(), Server.apply
    server.apply = lambda event: 1 / 0 if event["verb"] == "register" else whole(server, event)
    assert delivered(kept, server) == 5 and server.told == SENT
    assert not list(kept.directory.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("message", "broken", "tagged"), [("registered", False, True), (None, True, True), (None, False, False)]
)
def test_only_a_registration_that_arrives_or_waits_is_not_tried_again(monkeypatch, message, broken, tagged):
    class Answering:
        def __init__(self, uri, create):
            self.broken, self.sent = broken, []

        def __call__(self, action):
            return None

        def deliver(self):
            pass

        def send(self, verb, run, **values):
            self.sent.append((verb, *values.get("tags", ())))
            return message if verb == "register" else "id"

    monkeypatch.setattr(client, "Link", Answering)
    run = PipelineRun("http://server", "demo", {})
    assert run.register("puma", {"key": "k"}, {}, "id") == message
    assert (("tags", REGISTERED) in run.link.sent) is tagged
