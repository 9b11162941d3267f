"""`pipeline/search.py`: which index it takes, what it prints, and how it refuses."""

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.lookup.indexes import agrees, find_keys, read_overrides
from pipeline.lookup.queries import parse_fields
from pipeline.lookup.results import print_table
from pipeline.search import main
from pipeline.terminal import json_command
from pipeline.web.schemas import SearchAnswer
from stages.contract.context import InputError
from tests.search_world import make_world, picture, write_index, write_run
from tests.support import with_own_stdout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """A store with one run whose index is committed."""
    home = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        store, artifacts = make_world(home / "store")
        artifacts["index"] = write_index(store, artifacts)
        write_run(store, artifacts, "1")
        (home / "red.png").write_bytes(picture("red").bytes)
        (home / "broken.png").write_bytes(picture("red").bytes[:100])
        (home / "words.txt").write_text("not a picture")
        yield {"store": store, "artifacts": artifacts, "home": home}


def test_json_is_one_object_with_results_and_query(world: dict, capfd: pytest.CaptureFixture) -> None:
    home = world["home"]
    arguments = ["--text", "a red one", "--image", str(home / "red.png"), "--want", "text", "-k", "3", "--json"]
    assert with_own_stdout(main, [*arguments, f"store={world['store'].root}"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [set(row) for row in answer["results"]] == [{"id", "score", "text", "image", "modality"}] * 3
    assert answer["query"]["text"] == "A red one." and answer["query"]["modality"] == "image,text"
    assert answer.keys() == SearchAnswer.model_fields.keys() and answer["model"] == "student"  # as the server answers
    scores = [row["score"] for row in answer["results"]]
    assert scores == sorted(scores, reverse=True)


def test_json_that_nobody_reads_any_more_is_no_traceback(capfd: pytest.CaptureFixture) -> None:
    def nobody_reads(_: list) -> int:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.close(writer)
        return json_command(lambda: argparse.Namespace(json=True), lambda options, answer: answer.update(found=1))

    assert with_own_stdout(nobody_reads, []) == 0


def test_json_is_json_whatever_numbers_are_in_it(capfd: pytest.CaptureFixture) -> None:
    def fill(options: argparse.Namespace, answer: dict) -> None:
        answer |= {"loss": float("nan"), "found": [{"price": float("-inf"), "rank": 1}]}

    given = argparse.Namespace(json=True)
    assert with_own_stdout(lambda _: json_command(lambda: given, fill), []) == 0
    assert capfd.readouterr().out == '{"loss": null, "found": [{"price": null, "rank": 1}]}\n'


def test_json_is_utf_8_whatever_names_files_have(capfd: pytest.CaptureFixture) -> None:
    def fill(options: argparse.Namespace, answer: dict) -> None:
        raise InputError("no picture \udcff.jpg")

    given = argparse.Namespace(json=True)
    assert with_own_stdout(lambda _: json_command(lambda: given, fill), []) == 2
    assert json.loads(capfd.readouterr().out) == {"error": "no picture \udcff.jpg"}


def test_the_terminal_shows_ranked_rows_and_pictures_are_saved(world: dict, capfd: pytest.CaptureFixture) -> None:
    folder = world["home"] / "found"
    arguments = ["--text", "red", "-k", "2", "--want", "image", "--save-images", str(folder)]
    assert main([*arguments, f"store={world['store'].root}"]) == 0
    out = capfd.readouterr().out
    assert "rank" in out and "Find the picture." in out
    saved = sorted(path.name for path in folder.iterdir())
    assert [name[:5] for name in saved] == ["01_9_", "02_9_"] and all(name.endswith(".png") for name in saved)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to search for"),
        (["--text", ""], "the text is empty"),
        (["--text", "red", "-k", "0"], "asks for no result"),
        (["--text", "red", "-k", "many"], "invalid int value"),
        (["--text", "red", "--want", "sound"], "'sound' can't be wanted"),
        (["--image", "{home}/missing.jpg"], "does not exist"),
        (["--image", "{home}"], "is not a file"),
        (["--image", "{home}/words.txt"], "unknown format"),
        (["--image", "{home}/broken.png"], "truncated image"),
        (["--text", "red", "train.los=mac"], "did you mean 'train.loss'"),
        (["--text", "red", "--colour"], "--colour"),
        (["--text", "red", "--queries", "x"], "leave these options out"),
        (["--queries", "{home}/none.jsonl"], "can't be read"),
        (
            ["--text", "red", "--where", "brand=x", "store={home}/store"],
            "no column 'brand' to filter by; it has: dataset",
        ),
        (["--text", "red", "--backend", "annoy", "store={home}/store"], "there is no index backend 'annoy'"),
        (["--text", "red", "--backend", "lance", "store={home}/store"], "has no lance table"),
        (["--text", "red", "store={home}/nowhere"], "run `python pipeline/run.py store={home}/nowhere` first"),
        (
            ["--text", "red", "store={home}/store", "seed=7"],
            "for seed=7: run `python pipeline/run.py seed=7 store={home}/store` first",
        ),
        (["--text", "red", "data.kind=foo"], "data.kind must be one of scenes, mbeir, pairs, corpus, not 'foo'"),
        (["--text", "red", "--imgae", "x"], "unknown option '--imgae'; did you mean '--image'?"),
    ],
)
def test_bad_input_is_refused_with_code_2_and_one_line(
    world: dict, arguments: list[str], message: str, capfd: pytest.CaptureFixture
) -> None:
    assert main([one.format(home=world["home"]) for one in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message.format(home=world["home"]) in err and len(err.splitlines()) == 1


def test_the_terminal_shows_other_columns_and_obeys_nothing() -> None:
    from stages.search.filters import Condition, Filter
    from stages.search.retriever import Query, Result

    found = [Result("a\x1b[31m", 0.5, "red\x9b2J \u202e", None, "text", {"brand": "Ar\x07la", "price": 3})]
    out = io.StringIO()
    print_table(Query("red", None, None, None), found, out)
    shown = out.getvalue()
    assert all(word in shown for word in ("others", "brand: Ar\ufffdla", "price: 3", "a\ufffd[31m"))
    assert all(sign.isprintable() for sign in shown if sign != "\n")
    out = io.StringIO()
    print_table(Query("red", None, None, None, Filter(conditions=(Condition("m0", "=", "x"),))), [], out)
    assert "no candidate meets the conditions" in out.getvalue()


def test_a_file_of_queries_may_be_called_none(
    world: dict, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world["home"])
    Path("None.jsonl").write_text('{"text": "red", "where": {"brand": "x"}}')
    assert main(["--queries", "None.jsonl", f"store={world['store'].root}"]) == 2
    assert "error: None.jsonl:1: the index has no column" in capfd.readouterr().err


def test_the_newest_run_that_agrees_with_the_overrides_is_taken(world: dict) -> None:
    store, artifacts = world["store"], world["artifacts"]
    other = write_index(store, artifacts, "d" * 16)
    write_run(store, {**artifacts, "index": other}, "2", train={"loss": "infonce"})
    keys = {
        text: find_keys(store, "here", read_overrides(text.split())[1])["index"] for text in ("", "train.loss=mac")
    }
    assert keys == {"": other.key, "train.loss=mac": artifacts["index"].key}


def test_a_run_without_a_committed_index_is_passed_over(world: dict) -> None:
    store, artifacts = world["store"], world["artifacts"]
    write_run(store, {name: one for name, one in artifacts.items() if name != "index"}, "3", seed=3)
    with pytest.raises(InputError, match="no index"):
        find_keys(store, "here", {"seed": 3})


def test_the_command_that_makes_an_index_names_the_server_of_the_store(world: dict) -> None:
    _, wanted = read_overrides(["store_endpoint=http://h:9", "train.loss=mac"])
    found = find_keys(world["store"], "here", wanted)
    assert found["index"] == world["artifacts"]["index"].key  # whatever server the run itself was given
    with pytest.raises(InputError, match=r"=3: run `python .*run.py train.* seed=3 store=here store_e.*=http://h:9`"):
        find_keys(world["store"], "here", {**wanted, "seed": 3})


def test_a_corpus_is_found_however_its_place_is_spelled(
    world: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, place in ((5, "shop/photos"), (6, "s3://b/photos")):
        write_run(world["store"], world["artifacts"], str(number), index={"corpus": place})
    places = ("shop/photos/", "./shop/../shop/photos", f"{tmp_path}/shop/photos", "s3://b/photos/")
    for place in places:
        assert find_keys(world["store"], "here", read_overrides([f"index.corpus={place}"])[1])
    for place in ("shop", "photos", "s3://b/photo", f"{tmp_path}/b/photos"):
        with pytest.raises(InputError, match=f"run.py index.corpus={place} store=here student=STUDENT` first"):
            find_keys(world["store"], "here", {"index.corpus": place})
    with pytest.raises(InputError, match=r"index\.corpus=shop student\.model=S store=here` first"):
        find_keys(world["store"], "here", {"index.corpus": "shop", "student.model": "S"})


def test_a_file_of_queries_is_answered_in_its_order(world: dict, capfd: pytest.CaptureFixture) -> None:
    path = world["home"] / "asked.jsonl"
    asked = [{"text": "red", "want": "image"}, {"image": "red.png", "want": "text"}, {"text": "blue", "want": "text"}]
    path.write_text("\n\n".join(map(json.dumps, asked)))
    assert with_own_stdout(main, ["--queries", str(path), "-k", "2", "--json", f"store={world['store'].root}"]) == 0
    answers = json.loads(capfd.readouterr().out)["answers"]
    assert [one["query"]["modality"] for one in answers] == ["text", "image", "text"]
    assert [[row["modality"] for row in one["results"]] for one in answers] == [
        ["image"] * 2,
        ["text"] * 2,
        ["text"] * 2,
    ]
    arguments = ["--text", "red", "--want", "image", "-k", "2", "--json", f"store={world['store'].root}"]
    assert with_own_stdout(main, arguments) == 0
    alone = json.loads(capfd.readouterr().out)["results"]
    assert [row["id"] for row in alone] == [row["id"] for row in answers[0]["results"]]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{broken", "asked.jsonl:2: no JSON"),
        ("[1]", "asked.jsonl:2: a query is an object"),
        ('{"words": "red"}', "asked.jsonl:2: unknown key 'words'"),
        ('{"text": 1}', "asked.jsonl:2: text must be a text"),
        ('{"image": "../secret.png"}', "asked.jsonl:2: the image can't be used: path outside root"),
        ('{"text": "red", "where": {"brand": "x"}}', "asked.jsonl:2: the index has no column 'brand'"),
    ],
)
def test_a_bad_line_of_a_file_of_queries_is_named(
    world: dict, line: str, message: str, capfd: pytest.CaptureFixture
) -> None:
    path = world["home"] / "asked.jsonl"
    path.write_text('{"text": "red"}\n' + line)
    assert main(["--queries", str(path), f"store={world['store'].root}"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1


def test_a_line_that_is_no_json_is_refused_with_an_example() -> None:
    with pytest.raises(
        InputError, match=r'^no JSON: Expecting value: .*; write one object in a line, such as {"text": '
    ):
        parse_fields(b"red")


def test_help_goes_to_stdout(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out, err = capfd.readouterr()
    assert stop.value.code == 0 and "--save-images" in out and err == ""


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nimport pipeline.search as s\n"
        "try:\n    s.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_script_runs_from_any_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "pipeline" / "search.py", "--text", "red"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: no index in .puma/store: run `python pipeline/run.py` first\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_before_a_setting_has_its_first_value(world: dict) -> None:
    run = world["store"].runs()[0]
    del run["config"]["index"]["candidates"]
    assert agrees(run["config"], {"index.candidates": "student", "index.split": "test"})
    assert not agrees(run["config"], {"index.candidates": "teacher"})
