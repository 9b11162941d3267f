"""What the server answers: the same as the retriever, over HTTP. `test_refusals.py` has what it refuses."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from pipeline.web.served import ServedIndex
from stages.search.exact import HeldIndex
from stages.search.retriever import Retriever
from tests.search_world import COLOURS, picture, write_index
from tests.serve.conftest import RED, URL, Served, message, serving


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


def test_a_picture_is_read_where_it_holds_up_no_other_request(server: Served, monkeypatch: pytest.MonkeyPatch):
    threads, read = [], server.engine.student.picture

    def watched(image_id: str) -> tuple[bytes, str]:
        threads.append(threading.current_thread().name)
        return read(image_id)

    monkeypatch.setattr(server.engine.student, "picture", watched)
    assert server.get(f"image/{RED.image_id}").content == RED.bytes
    assert len(threads) == 1 and threads[0].startswith("decode")


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


@pytest.mark.parametrize("path", ["health", "", "about", f"image/{RED.image_id}", "v1/models", "nothing"])
def test_head_says_what_get_says_without_the_body(server: Served, path: str):
    asked, told = server.get(path), requests.head(f"{server.url}/{path}", timeout=60)
    same = ("content-length", "content-type", "content-security-policy")
    assert (told.status_code, told.content) == (asked.status_code, b"")
    assert [told.headers[name] for name in same] == [asked.headers[name] for name in same]


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
