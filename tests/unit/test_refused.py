"""What MLflow refuses is told and lost; only where it can't be reached does tracking wait on disk."""

import socket

import pytest

from pipeline.tracking import link as tracking
from pipeline.tracking.link import Link
from pipeline.tracking.spool import write_json
from tests.answering import answering


class Refusal(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.status = status

    def get_http_status_code(self) -> int:
        return self.status


@pytest.fixture
def link(tmp_path, monkeypatch) -> Link:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tracking, "connect", lambda uri, create: "client")
    return Link("http://server", create=True)


def refusing(status: int, taken: list):
    def apply_event(client, event):
        if event["verb"] in ("interrupt", "create"):
            raise Refusal(status)
        taken.append(event)
        return "made"

    return apply_event


def test_what_the_server_refuses_is_reported_once_and_the_rest_arrives(link, monkeypatch, capsys):
    taken: list = []
    monkeypatch.setattr(tracking, "apply_event", refusing(404, taken))
    for _ in range(2):
        link.send("interrupt", "gone")
    assert link.send("end", "m-1", status="FINISHED") == "made" and len(taken) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not link.spool.path.exists()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_server_that_may_take_it_later_is_reported_later(link, monkeypatch, capsys, status):
    monkeypatch.setattr(tracking, "apply_event", refusing(status, []))
    link.send("interrupt", "m-1")
    link.send("end", "m-1", status="FINISHED")
    assert capsys.readouterr().err.count("kept for the next run") == 1
    assert len(link.spool.path.read_text().splitlines()) == 2


def test_a_run_that_cannot_be_made_keeps_all_of_its_events(link, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "apply_event", refusing(400, []))
    assert link.send("create", "offline-1", name="run", tags={}) is None
    link.send("end", "offline-1", status="FINISHED")
    assert len(link.spool.path.read_text().splitlines()) == 2


def test_runs_that_were_made_without_a_server_are_called_as_it_knows_them(link, monkeypatch):
    taken: list = []
    monkeypatch.setattr(tracking, "apply_event", refusing(404, taken))
    link.spool.directory.mkdir(parents=True)
    write_json(link.spool.directory / "ids.json", {"offline-1": "m-1"})
    link.send("tags", "offline-1", tags={"mlflow.parentRunId": "offline-1", "cache": "hit"})
    assert taken[0]["run"] == "m-1" and taken[0]["tags"] == {"mlflow.parentRunId": "m-1", "cache": "hit"}


def test_a_server_that_listens_and_is_silent_is_given_up_within_seconds(monkeypatch):
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(OSError, match="Read timed out"):
            tracking.check_reachable(address)
    with pytest.raises(ConnectionRefusedError):
        tracking.check_reachable(address)


@pytest.mark.parametrize("status", [200, 302, 401, 404, 500])
def test_any_answer_shows_that_a_server_is_there(status):
    with answering((status, "")) as (address, asked):
        tracking.check_reachable(f"{address}/behind/")
    assert asked == ["/behind/health"]
