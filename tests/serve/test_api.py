"""What the server answers: the same as the retriever, over HTTP; and one line for whatever it refuses."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from PIL import Image

from pipeline.web.served import ServedIndex
from stages.search.exact import HeldIndex
from stages.search.retriever import Retriever
from tests.search_world import COLOURS, picture, write_index
from tests.serve.conftest import RED, Served, serving

URL = f"data:image/png;base64,{base64.b64encode(RED.bytes).decode()}"
DAMAGED = RED.bytes[:60] + bytes([RED.bytes[60] ^ 0x5A]) + RED.bytes[61:]


FORM = "multipart/form-data; boundary=b; charset="

FORM_BODY = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nr\xe9d-\xff!\r\n--b--\r\n'


def message(answer) -> str:
    """The one line of a refusal."""
    told = answer.json()["error"]["message"]
    assert "\n" not in told and len(told) < 400
    return told


@pytest.fixture(scope="module")
def retriever(world) -> Retriever:
    return Retriever.load(*(world.artifacts[name] for name in ("index", "ingest", "train")))


def test_a_text_finds_what_the_retriever_finds(server: Served, retriever: Retriever):
    answer = server.post(json={"text": "something red", "want": "image", "k": 3}).json()
    expected = retriever.search("something red", want="image", k=3)
    assert [one["id"] for one in answer["results"]] == [one.id for one in expected]
    assert [one["score"] for one in answer["results"]] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert answer["query"]["text"] == "Something red." and answer["query"]["instruction"] == "Find the picture."


def test_a_picture_and_words_travel_as_a_form(server: Served, retriever: Retriever):
    form = {"text": "red", "want": "text", "k": "4"}
    answer = server.post(data=form, files={"image": ("x", RED.bytes)}).json()
    expected = retriever.search("red", RED.bytes, want="text", k=4)
    assert [one["id"] for one in answer["results"]] == [one.id for one in expected]
    assert answer["query"]["modality"] == "image,text" and answer["query"]["image"] == RED.image_id


@pytest.mark.parametrize("wanted, count", [("shop", 3), (["shop", "else"], 3), ("else", 0)])
def test_results_are_kept_to_what_meets_the_conditions(server: Served, monkeypatch, wanted, count):
    card = server.engine.student.card
    others = [{**card["instructions"][0], "dataset": "else", "dataset_id": 77}]
    monkeypatch.setitem(card, "instructions", card["instructions"] + others)
    where = {"dataset": wanted}
    told = server.post(json={"text": "red", "k": 3, "where": where}).json()["results"]
    sent = server.post(files={"text": (None, "red"), "k": (None, "3"), "where": (None, json.dumps(where))}).json()
    assert [one["id"] for one in told] == [one["id"] for one in sent["results"]] and len(told) == count


@pytest.mark.parametrize("wanted", [20, "20", "$20"])
def test_a_column_of_text_is_not_ordered_by_a_number(server: Served, monkeypatch, wanted: object):
    monkeypatch.setitem(server.engine.student.card, "metadata", {"price": {"column": "m0", "kind": "text"}})
    body = {"text": "red", "where": {"price": {"<": wanted}}}
    for answer in (
        server.post(json=body),
        server.post(files={name: (None, part) for name, part in form(body).items()}),
    ):
        assert (answer.status_code, "'price' holds text" in message(answer)) == (400, True), answer.text


def form(body: dict) -> dict[str, str]:
    """A body of JSON as the fields of a form."""
    return {name: part if isinstance(part, str) else json.dumps(part) for name, part in body.items()}


def test_the_teacher_answers_by_its_own_vectors(server: Served, world):
    from stages.model.encoder import Encoder
    from stages.model.rows import Row

    answer = server.post(json={"text": "red", "want": "image", "k": 12, "model": "teacher"}).json()
    teacher = Encoder.load(world.artifacts["backbone"].local("model"))
    query = teacher.encode([Row("Find the picture.\nRed.")])
    shown = teacher.encode([Row(None, picture(colour).bytes) for colour in COLOURS])
    assert [one["score"] for one in answer["results"]] == pytest.approx(np.sort((query @ shown.T)[0])[::-1], abs=2e-3)
    assert set(server.get("about").json()["models"]["teacher"]) == {"layers", "parameters", "dim"}


def test_the_student_answers_while_the_teacher_is_loaded(world):
    with serving(world.source) as served, ThreadPoolExecutor(1) as pool:
        lazy, opened = served.engine.models["teacher"], threading.Event()
        load = lazy.load
        lazy.load = lambda: load() if opened.wait(60) else None
        teacher = pool.submit(served.post, json={"text": "red", "model": "teacher"})
        try:
            assert served.post(json={"text": "red"}).status_code == 200 and not teacher.done()
        finally:
            opened.set()
        assert teacher.result().status_code == 200
        assert isinstance(lazy.loaded.index, HeldIndex)


def test_many_at_once_get_each_their_own_answer_and_some_are_batched(server: Served):
    asked = [{"text": colour, "want": want, "k": 12} for colour in COLOURS for want in ("image", "text")]
    alone = [server.post(json=one).json()["results"] for one in asked]
    before = batches(server)
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: server.post(json=one).json()["results"], asked))
    for one, other in zip(alone, together, strict=True):
        assert {row["id"]: row["score"] for row in one} == pytest.approx(
            {row["id"]: row["score"] for row in other}, abs=1e-4
        )
    count, items = (after - earlier for after, earlier in zip(batches(server), before, strict=True))
    assert items == len(asked) and count < len(asked)


def batches(server: Served) -> tuple[float, float]:
    """How many batches of searches there were, and how many items in them, by the server's own metrics."""
    found = dict(line.rsplit(" ", 1) for line in server.get("metrics").text.splitlines() if line[0] != "#")
    return tuple(float(found[f'puma_batch_size_{part}{{work="search student"}}']) for part in ("count", "sum"))


def test_embeddings_have_openais_shape_and_the_pipelines_vectors(server: Served, retriever: Retriever):
    from stages.model.rows import Row

    words, shown = {"type": "text", "text": "A red square."}, {"type": "image_url", "image_url": {"url": URL}}
    inputs = ["A red square.", [shown], [words, shown]]
    answer = server.post("v1/embeddings", json={"model": "student", "input": inputs}).json()
    rows = [Row("A red square."), Row(None, RED.bytes), Row("A red square.", RED.bytes)]
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], retriever.encoder.encode(rows), atol=1e-4)
    lengths = [int(retriever.encoder.collator([row]).chunks[0].last_R[0]) + 1 for row in rows]
    assert answer["usage"]["prompt_tokens"] == sum(lengths)


def test_base64_embeddings_are_float32_as_openais_client_reads_them(server: Served):
    forms = [
        server.post("embed", json={"input": "red", "encoding_format": form}).json() for form in ("float", "base64")
    ]
    plain, packed = (form["data"][0]["embedding"] for form in forms)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), plain, atol=1e-6)


def test_an_embedded_query_gets_the_instruction_of_its_task(server: Served, retriever: Retriever):
    body = {"input": "red", "input_type": "query", "want": "image"}
    vector = server.post("embed", json=body).json()["data"][0]["embedding"]
    found = server.post(json={"text": "red", "want": "image", "k": 1}).json()["results"][0]
    shown = server.post("embed", json={"input": [[{"type": "image_url", "image_url": {"url": URL}}]]}).json()
    if found["image"] == RED.image_id:
        assert np.dot(vector, shown["data"][0]["embedding"]) == pytest.approx(found["score"], abs=2e-3)
    query = retriever.ask("Red.", None, "image")
    from stages.search.retriever import row_of

    np.testing.assert_allclose(vector, retriever.embed_many([row_of(query)])[0], atol=1e-4)


def test_pictures_of_results_are_served_with_their_type_and_for_ever(server: Served):
    answer = server.get(f"image/{RED.image_id}")
    assert (answer.content, answer.headers["content-type"]) == (RED.bytes, "image/png")
    assert "immutable" in answer.headers["cache-control"]
    again = server.get(f"image/{RED.image_id}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["0" * 32, "%2e%2e%2fmanifest.json", "..%2f..%2fetc%2fpasswd", "x", "é" * 9])
def test_only_ids_of_the_index_are_pictures(server: Served, name: str):
    answer = server.get(f"image/{name}")
    assert answer.status_code == 404 and message(answer)


def test_a_picture_that_only_queries_have_is_not_shown(world):
    from pipeline.web.engine import Shown

    class Data:
        """Two of the pictures are indexed."""

        def image_ids(self):
            yield ["a" * 32, "b" * 32]
            yield []

    shown = Shown(Data())
    assert ("a" * 32 in shown, "c" * 32 in shown) == (True, False)


@pytest.mark.parametrize(
    "arguments, status, told",
    [
        ({"json": {}}, 400, "nothing to search for"),
        ({"json": {"text": ""}}, 400, "text is empty"),
        ({"json": {"text": "red", "k": 0}}, 400, "k: "),
        ({"json": {"text": "red", "k": 101}}, 400, "k: "),
        ({"json": {"text": "red", "k": "3"}}, 400, "k: "),
        ({"json": {"text": "red", "want": "sound"}}, 400, "want: "),
        ({"json": {"text": "red", "model": "gpt"}}, 400, "ask one of: puma, student, teacher"),
        ({"json": {"text": "red", "want": "image,text"}}, 400, "no candidate of modality image,text"),
        ({"json": {"text": "red", "image": "/etc/passwd"}}, 400, "image: Extra inputs"),
        ({"json": {"text": "x" * 9000}}, 400, "text: "),
        ({"json": [1]}, 400, "object"),
        ({"data": b'{"text": "red"', "headers": {"content-type": "application/json"}}, 400, "Invalid JSON"),
        ({"data": b'{"text": "\\ud800"}', "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ({"data": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ({"data": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ({"data": b"text=red", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415, "send"),
        ({"data": b"red"}, 415, "send"),
        ({"data": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"data": FORM_BODY, "headers": {"content-type": FORM + "undefined"}}, 400, "charset"),
        ({"data": FORM_BODY, "headers": {"content-type": FORM + "punycode"}}, 400, "charset"),
        ({"json": {"text": "red", "where": {"brand": "x"}}}, 400, "no column 'brand' to filter by; it has: dataset"),
        ({"json": {"text": "red", "where": {"dataset": {"!=": "shop"}}}}, 400, "compared by = alone"),
        ({"json": {"text": "red", "where": {"dataset": None}}}, 400, "where"),
        ({"json": {"text": "red", "where": ["dataset=shop"]}}, 400, "where"),
        ({"data": {"where": "dataset=shop"}, "files": {"image": ("x", RED.bytes)}}, 400, "send a JSON object"),
        ({"data": {"where": "[1]"}, "files": {"image": ("x", RED.bytes)}}, 400, "where"),
        ({"json": {str(n): 0 for n in range(9000)}}, 400, "more keys"),
        ({"json": {"text": "red", "where": {"brand": ["x"] * 50_000}}}, 413, "more than"),
        ({"data": {"text": "red"}, "files": {"other": ("x", b"y")}}, 400, "only file"),
        ({"files": {"image": (None, "/etc/passwd")}}, 400, "must be a file"),
        ({"files": {"image": ("a.png", b"")}}, 400, "the file is empty"),
        ({"files": {"image": ("a.png", b"<svg/>")}}, 400, "unknown format"),
        ({"files": {"image": ("a.png", RED.bytes[:60])}}, 400, "image"),
        ({"files": {"image": ("a.png", DAMAGED)}}, 400, "the image can't be used: "),
        ({"files": [("image", ("a", RED.bytes)), ("image", ("b", RED.bytes))]}, 400, "Too many files"),
        ({"data": [("k", "1"), ("k", "2")], "files": {"image": ("a", RED.bytes)}}, 400, "given twice"),
        ({"data": {f"f{n}": "1" for n in range(20)}, "files": {"image": ("a", RED.bytes)}}, 400, "Too many fields"),
        ({"files": {"image": ("a.png", RED.bytes + bytes(8_000_001))}}, 413, "more than"),
        ({"data": bytes(12_000_001), "headers": {"content-type": "application/json"}}, 413, ""),
    ],
)
def test_a_bad_search_is_refused_in_one_line(server: Served, arguments: dict, status: int, told: str):
    answer = server.post(**arguments)
    assert (answer.status_code, told in message(answer)) == (status, True), answer.text


@pytest.mark.parametrize("path", ["search", "embed"])
def test_a_million_keys_are_refused_before_they_are_validated(server: Served, path: str, monkeypatch):
    from pydantic import BaseModel

    monkeypatch.setattr(BaseModel, "model_validate_json", lambda *_, **__: pytest.fail("it was validated"))
    body = b"{" + b",".join(b'"%d":0' % number for number in range(900_000)) + b"}"
    answer = server.post(path, data=body, headers={"content-type": "application/json"})
    assert answer.status_code == (413 if path == "search" else 400) and message(answer)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 5_000_000, b"[" + b"1," * 5_000_000, b'["a' + b"\\" * 5_000_001])
def test_no_body_takes_long_to_look_at(body: bytes):
    from pipeline.web.bodies import is_small

    start = time.perf_counter()
    is_small(body)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "body, told",
    [
        ({"input": []}, "input"),
        ({"input": [1] * 9_000}, "input"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": "red", "model": "gpt"}, "no model 'gpt' here; ask one of: puma, student, teacher"),
        ({"input": "red", "dimensions": 7}, "not cut to 7; the model was trained for: 16, 32"),
        ({"input": "red", "model": "teacher", "dimensions": 16}, "trained for: 32"),
        ({"input": ["red"] * 2049}, "at most 2048"),
        ({"input": "x" * 9000}, "at most 8192 characters"),
        ({"input": ["red", ""]}, "input.1"),
        ({"input": [[1, 2], [3]]}, "numbers of tokens are not read: send the texts"),
        ({"input": [[7] * 30_000] * 10}, "send fewer inputs, and texts instead of token numbers"),
        ({"input": 7}, "input: an input is a text"),
        ({"input": ["red", {}]}, "input 1: an input needs a text, an image or both"),
        ({"input": {"image": "http://127.0.0.1/x.png"}}, "not opened"),
        ({"input": ["red", {"image": "aGk="}]}, "input 1: the image can't be used: unknown format"),
        ({"input": {"image": base64.b64encode(DAMAGED).decode()}}, "the image can't be used: "),
        ({"input": {"image": "x", "colour": "red"}}, "input.colour: Extra inputs"),
        ({"input": "red", "messages": [{"role": "user", "content": "red"}]}, "either 'input' or 'messages'"),
        ({}, "either 'input' or 'messages'"),
        ({"messages": [{"role": "user", "content": ""}]}, "needs a text, an image or both"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}] * 2}]},
            "at most one image",
        ),
        ({"messages": [{"role": "user", "content": "x" * 5000}] * 2}, "more than 8,192 characters"),
        ({"input": "red", "normalized": False}, "normalized"),
        ({"input": "red", "task": "classification"}, "'retrieval.passage'"),
        ({"input": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}, "not opened"),
        ({"input": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, "not opened"),
        ({"input": [{"type": "image_url", "image_url": {"url": "data:text/html,x"}}]}, "data:image"),
        ({"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,***"}}]}, "base64"),
        ({"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}, "unknown format"),
        ({"input": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "at most one"),
    ],
)
def test_a_bad_embedding_is_refused_in_one_line(server: Served, body: dict, told: str):
    answer = server.post("embed", json=body)
    assert (answer.status_code, told in message(answer)) == (400, True), answer.text


@pytest.mark.parametrize("coding", ["gzip", "br, gzip"])
def test_a_compressed_body_is_told_to_come_as_it_is(server: Served, coding: str):
    import gzip

    body, headers = json.dumps({"input": "red"}).encode(), {"content-type": "application/json"}
    answer = server.post("embed", data=gzip.compress(body), headers={**headers, "content-encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert "without Content-Encoding" in message(answer)
    assert server.post("embed", data=body, headers={**headers, "content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("path", ["health", "", "about", f"image/{RED.image_id}", "v1/models", "nothing"])
def test_head_says_what_get_says_without_the_body(server: Served, path: str):
    asked, told = server.get(path), requests.head(f"{server.url}/{path}", timeout=60)
    same = ("content-length", "content-type", "content-security-policy")
    assert (told.status_code, told.content) == (asked.status_code, b"")
    assert [told.headers[name] for name in same] == [asked.headers[name] for name in same]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "v1/chat/completions", 404), ("GET", "v1/embeddings", 405)]
)
def test_what_is_not_answered_is_told_where_to_look(server: Served, method: str, path: str, status: int):
    answer = requests.request(method, f"{server.url}/{path}", timeout=60)
    told = f"{method} /{path} is not answered here; /openapi.json has what is"
    assert (answer.status_code, told in message(answer)) == (status, True), answer.text


def test_a_bomb_is_refused_by_its_header(server: Served):
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG")
    answer = server.post(files={"image": ("bomb.png", buffer.getvalue())})
    assert answer.status_code == 400 and "huge image" in message(answer)


def test_a_full_server_says_when_to_come_again(world):
    with serving(world.source, waiting=1) as served:
        answer = served.post("embed", json={"input": ["a", "b"]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert served.post("embed", json={"input": ["a"]}).status_code == 200
        assert "puma_refused_total 1.0" in served.get("metrics").text
    with serving(world.source, bodies_bytes=10) as served:
        answer = served.post(json={"text": "red"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert served.get("health").status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(world):
    with serving(world.source, answer_seconds=0.0) as served:
        answer = served.post(json={"text": "red"})
        assert (answer.status_code, "no answer in time" in message(answer)) == (503, True)


def test_a_failure_inside_is_one_line_outside_and_the_next_question_is_answered(server: Served, monkeypatch):
    def fail(queries, k):
        raise RuntimeError("secret path /home/somebody")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.student, "search_many", fail)
        answer = server.post(json={"text": "red"})
    assert (answer.status_code, "secret" in answer.text) == (500, False) and message(answer)
    assert "content-security-policy" in answer.headers
    assert server.post(json={"text": "red"}).status_code == 200


def test_the_document_names_both_bodies_and_every_path(server: Served):
    document = server.get("openapi.json").json()
    paths = {"/search", "/embed", "/v1/embeddings", "/v1/models", "/image/{image_id}", "/about", "/health", "/metrics"}
    assert set(document["paths"]) == paths
    kinds = document["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"application/json", "multipart/form-data"}
    assert all("where" in kind["schema"]["properties"] for kind in kinds.values())
    assert "metadata" in document["components"]["schemas"]["FoundCandidate"]["properties"]
    bodies = [document["components"]["schemas"]["EmbedBody"], *(kind["schema"] for kind in kinds.values())]
    assert all(body["properties"]["model"]["enum"] == ["puma", "student", "teacher"] for body in bodies)
    assert "EmbedBody" in json.dumps(document["paths"]["/embed"])


def test_unknown_paths_do_not_grow_the_metrics(server: Served):
    for number in range(5):
        assert server.get(f"nothing/{number}").status_code == 404
    text = server.get("metrics").text
    assert "nothing" not in text and 'route="other",status="404"' in text
    assert "process_resident_memory_bytes" in text


def test_an_index_of_the_teachers_candidates_is_asked_by_the_student_and_embeds_them_by_the_teacher(world):
    from stages.model.encoder import Encoder
    from stages.model.rows import Row

    artifacts = dict(world.artifacts)
    artifacts["index"] = write_index(world.store, artifacts, "b" * 16, "teacher")
    keys = {name: one.key for name, one in artifacts.items()}
    asked = {"input": ["A red square."], "input_type": "candidate"}
    with serving(ServedIndex(world.store, keys, True)) as served:
        assert served.get("about").json()["candidates"] == "teacher"
        found = served.post(json={"text": "red", "want": "text", "k": 12}).json()["results"]
        refused = served.post("embed", json=asked)
        assert refused.status_code == 400 and message(refused).startswith("this index holds the teacher's candidates")
        assert served.post("embed", json={**asked, "input_type": "query"}).status_code == 200
        vector = served.post("embed", json={**asked, "model": "teacher"}).json()["data"][0]["embedding"]
        teachers = served.post(json={"text": "red", "want": "text", "k": 12, "model": "teacher"}).json()["results"]
    student, teacher = (Encoder.load(artifacts[name].local("model")) for name in ("train", "backbone"))
    shown = teacher.encode([Row(f"A {colour} square.") for colour in COLOURS])
    assert vector == pytest.approx(shown[COLOURS.index("red")], abs=1e-5)
    for results, model in ((found, student), (teachers, teacher)):
        best = np.sort((model.encode([Row("Red.")]) @ shown.T)[0])[::-1]
        assert [one["score"] for one in results] == pytest.approx(best, abs=2e-3)
    with serving(ServedIndex(world.store, keys, compare=False)) as served:
        assert set(served.get("about").json()["models"]) == {"student"}
