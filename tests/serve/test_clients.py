"""Whoever asks for vectors asks as it is used to: the JSON that clients send, in their sizes and shapes.

What the clients themselves make of the answers is in test_serving_page.py, where they are installed.
"""

import asyncio
import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from pipeline.web.batching import Gate
from pipeline.web.engine import Engine
from pipeline.web.served import ServedIndex
from stages.contract.context import InputError
from stages.data.sources.fields import normalise
from stages.model.prompt import READ_OUTS
from stages.model.rows import Row
from stages.search.precision import quantize
from stages.search.retriever import Query, Retriever
from tests.search_world import write_index
from tests.serve.conftest import RED, Served, serving

PACKED = base64.b64encode(RED.bytes).decode()
WRAPPED = base64.encodebytes(RED.bytes).decode()  # a new line after each 76 characters, as `base64 FILE` prints it
URL = f"data:image/png;base64,{PACKED}"
WORDS = "A red square."
TEXT, SHOWN = {"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": URL}}


def vectors(answer) -> np.ndarray:
    """What an answer holds, in the order of the inputs."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    found = [one["embedding"] for one in data]
    return np.stack([np.frombuffer(base64.b64decode(one), "<f4") if isinstance(one, str) else one for one in found])


def user(content) -> list[dict]:
    """vLLM's messages."""
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "body, row",
    [
        ({"messages": user(WORDS)}, Row(WORDS)),
        ({"messages": user([SHOWN])}, Row(None, RED.bytes)),
        ({"messages": user([SHOWN, TEXT])}, Row(WORDS, RED.bytes)),
        ({"messages": user([{"type": "image_url", "image_url": URL}])}, Row(None, RED.bytes)),
        ({"messages": [{"role": "system", "content": "Find it.\n"}, *user([TEXT])]}, Row(f"Find it.\n{WORDS}")),
        ({"input": [{"image": PACKED}]}, Row(None, RED.bytes)),
        ({"input": [{"image": URL}]}, Row(None, RED.bytes)),
        ({"input": [{"image": f"DATA:IMAGE/PNG;BASE64,{PACKED}"}]}, Row(None, RED.bytes)),
        ({"input": [{"image": f"data:application/octet-stream;base64,{PACKED}"}]}, Row(None, RED.bytes)),
        ({"input": {"text": WORDS}}, Row(WORDS)),
        ({"input": [{"text": WORDS, "image": PACKED}]}, Row(WORDS, RED.bytes)),
        ({"inputs": [{"content": [TEXT, SHOWN]}]}, Row(WORDS, RED.bytes)),
        ({"inputs": [{"content": [SHOWN]}]}, Row(None, RED.bytes)),
        ({"input": [SHOWN]}, Row(None, RED.bytes)),
        ({"input": [{"image": WRAPPED}]}, Row(None, RED.bytes)),
        (
            {"messages": user([{"type": "image_url", "image_url": f"data:image/png;base64,{WRAPPED}"}])},
            Row(None, RED.bytes),
        ),
    ],
)
def test_a_picture_comes_in_the_shape_that_a_client_is_used_to(server: Served, body: dict, row: Row):
    found = vectors(server.post("v1/embeddings", json={"model": "puma", **body}))
    np.testing.assert_allclose(found, server.engine.student.encoder.encode([row]), atol=1e-4)


def test_texts_of_messages_are_joined_as_the_chat_template_joins_them():
    from jinja2 import Template

    from pipeline.web.inputs import EmbedBody

    turns = [{"role": "system", "content": "Find it."}, *user([SHOWN, TEXT]), {"role": "assistant", "content": ""}]
    ((text, picture, told),) = EmbedBody.model_validate_json(json.dumps({"messages": turns}), strict=True).inputs()
    for read_out in READ_OUTS.values():
        expected = Template(read_out.chat_template(200)).render(messages=turns)
        assert read_out.render(text, picture is not None, 200, told) == expected


@pytest.mark.parametrize("is_query", [False, True])
@pytest.mark.parametrize("name", ["puma", "gme"])
def test_what_the_system_says_is_the_instruction_and_a_text_has_the_form_of_the_data(name: str, is_query: bool):
    async def ask(text, image, want):
        return Query(normalise(text), image, want, "Not this one.")

    collator = SimpleNamespace(read_out=READ_OUTS[name])
    engine = SimpleNamespace(ask=ask, student=SimpleNamespace(encoder=SimpleNamespace(collator=collator)))
    row = asyncio.run(Engine.row(engine, "red square", None, is_query, None, "Find it.\n"))
    assert row == Row("Red square.", instruction="Find it.\n")
    if name == "puma":  # whose prompt has one text for both
        alone = asyncio.run(Engine.row(engine, None, None, False, None, "Find it.\n"))
        assert alone == Row("Find it.")


@pytest.mark.parametrize(
    "sent, count",
    [
        ({"input": [f"document {number}" for number in range(200)]}, 200),  # LangChain
        ({"input": [f"document {number}" for number in range(100)]}, 100),  # LlamaIndex
        ({"input": "red", "encoding_format": None, "dimensions": None, "user": None}, 1),
        ({"input": ["red"], "input_type": None, "want": None, "messages": None, "normalized": True}, 1),
    ],
)
def test_lists_of_documents_are_embedded_in_their_order(server: Served, sent: dict, count: int):
    found = vectors(server.post("v1/embeddings", json={"model": "puma", "encoding_format": "base64"} | sent))
    assert len(found) == count
    for place in {0, count // 2, count - 1}:
        alone = [sent["input"][place]] if isinstance(sent["input"], list) else sent["input"]
        np.testing.assert_allclose(found[place], vectors(server.post("embed", json={"input": alone}))[0], atol=1e-4)


class Slow:
    """Stands for the student's `embed_many`: notes how many rows come at once, and waits to be let on."""

    def __init__(self, monkeypatch, server: Served) -> None:
        self.sizes: list[int] = []
        self.began, self.go = threading.Event(), threading.Event()
        monkeypatch.setattr(server.engine.student, "embed_many", self)

    def __call__(self, rows) -> np.ndarray:
        self.sizes.append(len(rows))
        self.began.set()
        assert self.go.wait(30)
        return np.full((len(rows), 32), 32**-0.5, np.float32)


def test_two_thousand_inputs_pass_the_model_in_batches(server: Served, monkeypatch):
    slow = Slow(monkeypatch, server)
    slow.go.set()
    answer = server.post("v1/embeddings", json={"model": "puma", "input": ["red"] * 2048})
    assert vectors(answer).shape == (2048, 32)
    assert slow.sizes == [server.engine.limits.batch] * 64
    assert answer.json()["usage"]["prompt_tokens"] == 2048 * server.engine.student.encoder.collator.count_tokens(
        Row("Red.")
    )


def test_no_more_pictures_are_decoded_than_a_batch_has(server: Served, monkeypatch):
    from pipeline.web import engine

    decoded = []
    check = engine.check_image
    monkeypatch.setattr(engine, "check_image", lambda *given: decoded.append(1) or check(*given))
    slow = Slow(monkeypatch, server)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.post, "embed", json={"input": [{"image": PACKED}] * 100})
        assert slow.began.wait(30) and len(decoded) == server.engine.limits.batch
        slow.go.set()
        assert len(vectors(asked.result())) == len(decoded) == 100


def test_a_short_question_does_not_wait_for_a_long_list(server: Served, monkeypatch):
    slow, asked = Slow(monkeypatch, server), threading.Event()
    monkeypatch.setattr(server.engine.embeds["student"], "seen", lambda size: asked.set())
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(server.post, "embed", json={"input": ["red"] * 320})
        assert slow.began.wait(30)
        short = pool.submit(server.post, "embed", json={"input": "red"})
        assert asked.wait(30)
        slow.go.set()
        assert short.result().status_code == long.result().status_code == 200
    assert slow.sizes[:3] == [32, 1, 32] and len(slow.sizes) == 11


def test_only_so_many_long_lists_are_under_way_at_once(server: Served, monkeypatch):
    monkeypatch.setattr(server.engine, "bulk", Gate(0))
    answer = server.post("embed", json={"input": ["red"] * 33})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert server.post("embed", json={"input": ["red"] * 32}).status_code == 200


def test_a_long_list_whose_client_hung_up_costs_no_more(server: Served, monkeypatch):
    slow = Slow(monkeypatch, server)
    body = json.dumps({"input": ["red"] * 320}).encode()
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), 30) as connection:
        head = f"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert slow.began.wait(30)
    time.sleep(0.2)  # until the server has heard of it
    slow.go.set()
    deadline = time.monotonic() + 30
    while server.engine.bulk.inside and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.engine.bulk.inside and len(slow.sizes) == 1
    assert 'status="499"' in server.get("metrics").text


@pytest.mark.parametrize("form", ["float", "base64"])
def test_dimensions_that_were_trained_are_cut_and_have_unit_length(server: Served, form: str):
    def asked(dimensions):
        body = {"input": ["red", "blue"], "dimensions": dimensions, "encoding_format": form}
        return vectors(server.post("embed", json=body))

    whole, shorter = asked(None), asked(16)
    assert shorter.shape == (2, 16) and np.array_equal(asked(32), whole)
    np.testing.assert_allclose(np.linalg.norm(shorter, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        shorter, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-6
    )


def test_the_list_of_models_has_the_registered_name_and_each_name_answers(server: Served):
    listed = server.get("v1/models").json()
    assert listed["object"] == "list" and [one["id"] for one in listed["data"]] == ["puma", "student", "teacher"]
    assert all(one["object"] == "model" and isinstance(one["created"], int) for one in listed["data"])
    for name in ("puma", "student", "teacher"):
        assert server.post("v1/embeddings", json={"model": name, "input": "red"}).json()["model"] == name
        assert server.post(json={"text": "red", "model": name}).json()["model"] == name


def test_a_student_that_is_not_registered_has_no_name_but_its_own(world):
    card = {"train": {"key": world.artifacts["train"].key, "attempt": "another"}}
    assert world.source.registered(card) == ""
    assert world.source.registered({"student": {"directory": "elsewhere", "identity": "x"}}) == ""
    made = world.artifacts["train"]
    assert world.source.registered({"student": {"stage": "train", "key": made.key, "attempt": made.attempt}}) == "puma"


@pytest.mark.parametrize(
    "asked", [{"input_type": "query"}, {"input_type": "search_query"}, {"task": "retrieval.query"}]
)
def test_each_clients_word_for_a_query_adds_the_instruction(server: Served, asked: dict):
    from stages.search.retriever import row_of

    retriever: Retriever = server.engine.student
    query = retriever.embed_many([row_of(retriever.ask("Red.", None, None))])
    np.testing.assert_allclose(vectors(server.post("embed", json={"input": "red", **asked})), query, atol=1e-4)


@pytest.mark.parametrize("asked", [{}, {"input_type": "search_document"}, {"task": "retrieval.passage"}])
def test_each_clients_word_for_a_document_adds_nothing(server: Served, asked: dict):
    plain = server.engine.student.embed_many([Row("Red.")])
    np.testing.assert_allclose(vectors(server.post("embed", json={"input": "red", **asked})), plain, atol=1e-4)


def numbers(answer) -> list[list[int]]:
    """What an answer holds that are no floats."""
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


@pytest.mark.parametrize("asked", ["embedding_type", "output_dtype", "embedding_types"])
@pytest.mark.parametrize("kind", ["binary", "ubinary"])
def test_each_clients_word_for_signs_gives_eight_in_a_number(server: Served, asked: str, kind: str):
    body = {"input": ["red", "blue"], asked: [kind] if asked == "embedding_types" else kind}
    whole = vectors(server.post("embed", json={"input": ["red", "blue"]}))
    assert numbers(server.post("embed", json=body)) == quantize(whole, kind).tolist()
    found = numbers(server.post("v1/embeddings", json={**body, "dimensions": 16, "encoding_format": "float"}))
    assert found == quantize(whole[:, :16], kind).tolist() and len(found[0]) == 2


def test_jinas_base64_is_openais(server: Served):
    bodies = [{"input": "red", name: "base64"} for name in ("embedding_type", "encoding_format")]
    assert len({server.post("embed", json=body).text for body in bodies}) == 1


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"embedding_type": "int8"}, "int8 needs the ranges that values of candidates have"),
        ({"embedding_type": "int4"}, "embedding_type: Input should be 'float', 'base64', 'int8'"),
        ({"embedding_types": ["float", "binary"]}, "ask for one kind of numbers at a time"),
        ({"embedding_type": "binary", "encoding_format": "base64"}, "base64 holds float32"),
    ],
)
def test_a_kind_of_numbers_that_is_not_there_is_refused_in_words(server: Served, asked: dict, told: str):
    answer = server.post("embed", json={"input": "red", **asked})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"], answer.text


def test_an_index_of_int8_is_searched_and_gives_int8_by_its_ranges(world):
    artifacts = dict(world.artifacts)
    artifacts["index"] = write_index(world.store, artifacts, "9" * 16, precision="int8")
    keys = {name: one.key for name, one in artifacts.items()}
    ranges = np.array(artifacts["index"].read_json("retriever.json")["ranges"], np.float32)
    with serving(ServedIndex(world.store, keys, True)) as served:
        (whole,) = vectors(served.post("embed", json={"input": "red"}))
        for kind in ("int8", "uint8"):
            found = numbers(served.post("embed", json={"input": "red", "embedding_type": kind}))
            assert found == [quantize(whole, kind, ranges).tolist()]
        answer = served.post("embed", json={"input": "red", "embedding_type": "int8", "dimensions": 16})
        assert answer.status_code == 400 and "those of the index, of its whole vectors" in answer.text
        with pytest.raises(InputError, match="of its whole vectors; leave dimensions and model out"):
            served.engine.ranges("teacher", "int8", 32)
        found = served.post(json={"text": "red", "k": 3}).json()["results"]
        expected = served.engine.student.index.search(served.engine.student.embed_many([Row("Red.")]), 30)[0]
        assert len(found) == 3 and {one["id"] for one in found} <= set(expected.dids[0])
