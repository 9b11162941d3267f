"""MLflow as the run's pages need it: parent and children, curves from workers, digests, the registered student."""

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.tracking.client import PipelineRun, StageRun, metric_name, resolve_uri
from pipeline.tracking.events import EXPERIMENT, apply_event
from pipeline.tracking.link import Link

STUDENT = {"key": "k1", "attempt": "a1", "weights": "/somewhere/model", "test": "data/test/all"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """One database for all tests: the first connection makes its tables, which takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/home/mlflow.db"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Unsent events of tests stay in tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def parent(uri) -> Iterator[PipelineRun]:
    yield PipelineRun(uri, "demo", {"recipe": "demo"})


def client(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def test_the_database_and_the_files_lie_where_the_address_says(parent, uri):
    database = Path(uri.removeprefix("sqlite:///"))
    assert database.is_file()
    experiment = client(uri).get_experiment_by_name(EXPERIMENT)
    assert experiment.experiment_id == parent.experiment_id
    assert experiment.artifact_location == (database.parent / "mlartifacts").as_uri()
    parent.text("notes/hello.txt", "hello")
    assert [path.read_text() for path in (database.parent / "mlartifacts").rglob("hello.txt")] == ["hello"]


def test_stages_are_children_of_the_run(parent, uri):
    child = parent.stage("train", {"cache": "hit", "key": "k"})
    child.end("FINISHED")
    parent.end("FAILED")
    found = client(uri).get_run(child.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert found.info.run_name == "train" and found.data.tags["cache"] == "hit" and found.info.status == "FINISHED"
    assert client(uri).get_run(parent.run_id).info.status == "FAILED"


def test_numbers_are_logged_over_time_flat_and_finite(parent, uri):
    child = parent.stage("train", {})
    for step in (1, 2):
        child.metrics(
            {"loss": 1 / step, "local": {"hit@5": 0.5}, "bad": float("nan"), "name": "x", "flag": True}, step
        )
    found = client(uri)
    assert [(point.step, point.value) for point in found.get_metric_history(child.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
    ]
    assert set(found.get_run(child.run_id).data.metrics) == {"loss", "local/hit_at_5"}


def test_many_and_long_parameters_fit(parent, uri):
    child = parent.stage("train", {})
    child.params({f"p{index}": "x" * 9000 for index in range(230)})
    assert len(client(uri).get_run(child.run_id).data.params) == 230
    assert not parent.link.broken


def test_datasets_carry_the_key_as_their_digest(parent, uri):
    child = parent.stage("train", {})
    child.dataset("ingest", "/store/ingest/0123456789abcdef", "0123456789abcdef", "input")
    (entry,) = client(uri).get_run(child.run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("ingest", "0123456789abcdef")
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "input"}


def test_the_description_is_cut_to_what_mlflow_takes(parent, uri):
    parent.note("# Result\n" + "x" * 10_000)
    assert client(uri).get_run(parent.run_id).data.tags["mlflow.note.content"].startswith("# Result")
    assert not parent.link.broken


def test_pictures_are_logged(parent, uri):
    from matplotlib.figure import Figure

    parent.figure("curve.png", Figure())
    assert [file.path for file in client(uri).list_artifacts(parent.run_id)] == ["curve.png"]


def champion(uri: str, name: str) -> str:
    return str(client(uri).get_model_version_by_alias(name, "champion").version)


def quality(value: float) -> dict:
    return {"local": {"hit@5": value}}


def test_a_student_is_registered_by_reference_and_is_the_champion(parent, uri, tmp_path):
    child = parent.stage("train", {})
    assert "models:/one@champion is version 1" in parent.register("one", STUDENT, quality(0.51234), child.run_id)
    found = client(uri).get_model_version_by_alias("one", "champion")
    assert found.tags["weights"] == "/somewhere/model" and found.tags["local/hit_at_5"] == "0.51234"
    assert found.run_id == child.run_id and found.source.startswith("models:/m-")
    from mlflow.artifacts import download_artifacts

    copied = Path(download_artifacts("models:/one@champion", dst_path=str(tmp_path), tracking_uri=uri))
    assert "/somewhere/model" in (copied / "MLmodel").read_text()
    assert not list(copied.rglob("*.safetensors"))


def test_the_same_student_keeps_its_version(parent, uri):
    child = parent.stage("train", {})
    assert "version 1" in parent.register("two", STUDENT, quality(0.5), child.run_id)
    assert "version 1" in parent.register("two", STUDENT, quality(0.5), child.run_id)


def test_what_was_registered_is_known_to_later_runs(parent, uri):
    assert not parent.is_registered("four", STUDENT, "auto")
    parent.register("four", STUDENT, quality(0.5), parent.run_id)
    later = PipelineRun(uri, "demo", {})
    assert later.is_registered("four", STUDENT, "auto")
    assert not later.is_registered("four", STUDENT, "never")
    assert not later.is_registered("four", {**STUDENT, "attempt": "a9"}, "auto")


def test_a_student_whose_run_was_tracked_elsewhere_is_registered_all_the_same(parent, uri, capsys):
    assert "version 1" in parent.register("five", STUDENT, quality(0.5), "0" * 32)
    assert champion(uri, "five") == "1" and "warning" not in capsys.readouterr().err


def test_a_student_takes_the_alias_only_when_it_is_as_good_on_the_same_test_data(parent, uri):
    run = parent.stage("train", {}).run_id
    parent.register("three", STUDENT, quality(0.5), run)
    worse = {**STUDENT, "attempt": "a2"}
    assert "0.500 against 0.400" in parent.register("three", worse, quality(0.4), run)
    assert champion(uri, "three") == "1"
    assert str(client(uri).get_model_version_by_alias("three", "challenger").version) == "2"
    parent.register("three", {**STUDENT, "attempt": "a3"}, quality(0.5), run)
    assert champion(uri, "three") == "3"
    elsewhere = {**STUDENT, "attempt": "a4", "test": "other/test/all"}
    assert "other test data" in parent.register("three", elsewhere, quality(0.9), run)
    assert champion(uri, "three") == "3"
    parent.register("three", elsewhere, quality(0.9), run, alias="never")
    assert champion(uri, "three") == "3"
    parent.register("three", elsewhere, quality(0.9), run, alias="always")
    assert champion(uri, "three") == "4"
    assert "challenger" not in client(uri).get_registered_model("three").aliases


def test_a_champion_that_is_evaluated_on_other_data_stays_with_what_it_found(parent, uri):
    """Else a worse student takes its place: any number beats that of a harder test."""
    run = parent.stage("train", {}).run_id
    parent.register("six", STUDENT, quality(0.8), run)
    binary = {**STUDENT, "test": f"{STUDENT['test']}/binary", "evaluation": "another"}
    assert "registered before: six version 1; what it found in" in parent.register("six", binary, quality(0.76), run)
    assert "0.800 against 0.770" in parent.register("six", {**STUDENT, "attempt": "a2"}, quality(0.77), run)
    assert champion(uri, "six") == "1"
    other = {**STUDENT, "attempt": "a3", "test": "other/test/50"}
    assert "other test data" in parent.register("six", other, quality(0.9), run)
    parent.register("six", {**other, "test": STUDENT["test"]}, quality(0.9), run)  # a challenger has no number to keep
    assert champion(uri, "six") == "3"
    parent.register("six", STUDENT, quality(0.9), run)
    parent.register("six", binary, quality(0.76), run, alias="always")
    assert client(uri).get_model_version("six", "1").tags["local/hit_at_5"] == "0.76"


@pytest.mark.ray
def test_a_worker_process_logs_through_a_handle(shared_cluster, parent, uri):
    import ray

    child = parent.stage("train", {})
    ray.get(ray.remote(lambda handle: handle.metrics({"loss": 3.0}, step=7)).remote(child.handle()))
    assert [(point.step, point.value) for point in client(uri).get_metric_history(child.run_id, "loss")] == [(7, 3.0)]


def test_a_handle_never_raises_and_makes_no_database_of_its_own(tmp_path, capsys):
    handle = pickle.loads(pickle.dumps(StageRun(Link(f"sqlite:///{tmp_path}/gone/mlflow.db"), "some run")))
    handle.metrics({"loss": 1.0}, step=1)
    handle.metrics({"loss": 1.0}, step=2)
    assert capsys.readouterr().err.count("kept for the next run") == 1
    assert not (tmp_path / "gone").exists()


def offline_run(uri: str) -> tuple[PipelineRun, StageRun]:
    """What a run tracks in a training stage and at its end, while nobody listens at `uri`."""
    run = PipelineRun(uri, "demo", {"recipe": "demo"})
    child = run.stage("train", {"cache": "miss"})
    pickle.loads(pickle.dumps(child.handle())).metrics({"loss": 1.0}, step=7)
    child.params({"train.loss": "mac"})
    child.text("notes/report.txt", "words")
    child.end("FINISHED")
    run.register("late", STUDENT, {"local": {"hit@5": 0.5}}, child.run_id)
    run.end("FINISHED")
    return run, child


def test_a_server_that_is_not_there_costs_one_line_and_nothing_is_lost(uri, parent, capsys, monkeypatch):
    run, child = offline_run("http://127.0.0.1:9")
    assert capsys.readouterr().err.count("\n") == 1
    spool, found = run.link.spool, client(uri)
    assert spool.deliver(partial(apply_event, found), lambda: True) == 0  # its writer lives
    monkeypatch.setattr("pipeline.tracking.spool.alive", lambda writer: False)
    assert spool.deliver(partial(apply_event, found), lambda: True) == 9
    sent = found.get_run(spool.ids()[child.run_id])
    assert sent.data.tags["mlflow.parentRunId"] == spool.ids()[run.run_id]
    assert sent.data.params == {"train.loss": "mac"} and sent.info.status == "FINISHED"
    assert [(point.step, point.value) for point in found.get_metric_history(sent.info.run_id, "loss")] == [(7, 1.0)]
    assert found.get_model_version_by_alias("late", "champion").run_id == sent.info.run_id
    assert sent.info.start_time <= sent.info.end_time  # the times of the events, not of the delivery
    assert not list(spool.directory.glob("*.jsonl"))


def test_a_delivery_that_breaks_off_goes_on_where_it_was(uri, parent, monkeypatch):
    run, _ = offline_run("http://127.0.0.1:10")
    monkeypatch.setattr("pipeline.tracking.spool.alive", lambda writer: False)
    taken = []

    def apply_three(event):
        if len(taken) == 3:
            raise ConnectionError
        taken.append(event["verb"])
        return f"made {len(taken)}"

    assert run.link.spool.deliver(apply_three, lambda: False) == 3
    assert run.link.spool.deliver(lambda event: taken.append(event["verb"]), lambda: True) == 6
    assert taken == ["create", "create", "metrics", "params", "text", "end", "register", "tags", "end"]


def test_what_the_server_never_takes_holds_nothing_up(monkeypatch):
    run, _ = offline_run("http://127.0.0.1:11")
    monkeypatch.setattr("pipeline.tracking.spool.alive", lambda writer: False)

    def refuse_params(event):
        if event["verb"] == "params":
            raise ValueError("no")
        return "made"

    assert run.link.spool.deliver(refuse_params, lambda: True) == 8
    assert not list(run.link.spool.directory.glob("*.jsonl"))


def test_a_killed_run_and_its_stages_get_an_end(parent, uri):
    killed = PipelineRun(uri, "demo", {})
    done, open_ = killed.stage("ingest", {}), killed.stage("train", {})
    done.end("FINISHED")
    parent.interrupted(killed.run_id)
    states = [client(uri).get_run(one.run_id).info.status for one in (killed, done, open_)]
    assert states == ["KILLED", "FINISHED", "KILLED"]


def test_the_address_is_the_option_then_the_environment_then_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert resolve_uri("http://option") == "http://option"
    assert resolve_uri("") == "http://server"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_uri("", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_names_of_measures_become_names_that_mlflow_takes():
    assert metric_name("hit@5[image→text]") == "hit_at_5/image-text"
    assert metric_name("τ hard, 50%") == "τ hard_ 50_"
