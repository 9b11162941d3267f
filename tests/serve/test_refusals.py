"""What the server refuses, and when it can't answer: each in one line, with a status that says whose fault it is."""

import base64
import io
import json
import time

import pytest
import requests
from PIL import Image

from tests.serve.conftest import RED, URL, Served, message, serving

DAMAGED = RED.bytes[:60] + bytes([RED.bytes[60] ^ 0x5A]) + RED.bytes[61:]
FORM = "multipart/form-data; boundary=b; charset="
FORM_BODY = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nr\xe9d-\xff!\r\n--b--\r\n'


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
