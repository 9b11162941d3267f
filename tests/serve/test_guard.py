"""Who may ask, from where, and what every answer says to a browser."""

import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from pipeline.web.guard import Access
from tests.serve.conftest import RED, Served, serving

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked(world):
    with serving(world.source, token=TOKEN) as served:
        yield served


def ask(server: Served, path: str, **headers: str) -> int:
    return server.get(path, headers=headers).status_code


def test_without_the_token_only_the_page_and_health_answer(locked: Served):
    open_paths = ("", "page.css", "page.js", "icon.svg", "health", "openapi.json")
    assert [ask(locked, path) for path in open_paths] == [200] * 6
    closed = ("about", "metrics", f"image/{RED.image_id}")
    assert [ask(locked, path) for path in closed] == [401] * 3
    answer = locked.post(json={"text": "red"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer ÿ"]
)
def test_only_the_whole_token_opens(locked: Served, value: str):
    assert ask(locked, "about", authorization=value.encode("latin-1")) == 401
    assert ask(locked, "about", authorization=f"Bearer {TOKEN}") == 200
    assert locked.post(json={"text": "red"}, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("path", ["", "health", "nothing", f"image/{RED.image_id}", "image/x", "metrics"])
def test_every_answer_carries_the_browsers_orders(server: Served, path: str):
    headers = server.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["style-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"] and "http" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'" and headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer" and "server" not in headers


def test_the_page_itself_asks_for_nothing_from_elsewhere(server: Served):
    for path in ("", "page.css", "page.js"):
        text = server.get(path).text
        assert "http://" not in text and "https://" not in text and "//cdn" not in text
    page = server.get("").text
    assert "<script>" not in page and "style=" not in page and "onclick" not in page
    assert "innerHTML" not in server.get("page.js").text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[", ""])
def test_a_local_server_answers_to_local_names_only(server: Served, host: str):
    # A page of evil.example whose name points to 127.0.0.1 would else read everything (DNS rebinding).
    assert ask(server, "about", host=host) == 421


def test_a_local_server_answers_to_each_of_its_names(server: Served):
    port = urlsplit(server.url).port
    assert [ask(server, "health", host=f"{name}:{port}") for name in ("localhost", "127.0.0.1", "[::1]")] == [200] * 3


def test_a_server_with_a_token_or_an_address_may_have_any_name():
    assert Access.of("127.0.0.1", TOKEN).hosts == Access.of("0.0.0.0", None).hosts == frozenset()
    assert Access.of("localhost", None).hosts


def test_another_origins_page_may_not_post(server: Served):
    origins = {"https://evil.example": 403, "null": 403, server.url: 200}
    got = {origin: server.post(json={"text": "red"}, headers={"origin": origin}).status_code for origin in origins}
    assert got == origins


@pytest.mark.parametrize("token", [None, TOKEN])
def test_behind_a_proxy_the_pages_own_address_may_post_and_no_other(token: str | None):
    access = Access.of("127.0.0.1", token, "https://search.example:8443")
    upstream, through = "127.0.0.1:8000", "search.example:8443"
    assert all(access.may_ask("https://search.example:8443", host) for host in (upstream, through))
    assert access.may_ask(f"http://{upstream}", upstream)
    for origin in ("http://search.example:8443", "https://search.example", "https://evil.example", "null"):
        assert not access.may_ask(origin, upstream)
    assert access.hosts == (frozenset() if token else {"localhost", "127.0.0.1", "::1", "search.example"})
    assert Access.of("127.0.0.1", None).hosts == {"localhost", "127.0.0.1", "::1"}


def test_a_page_behind_a_proxy_that_the_server_was_not_told_of_is_told_how(server: Served):
    answer = server.post(json={"text": "red"}, headers={"origin": "https://search.example"})
    assert answer.status_code == 403 and "--public-url" in answer.json()["error"]["message"]
    assert server.post(json={"text": "red"}, headers={"origin": "https://["}).status_code == 403


def raw(server: Served, data: bytes) -> http.client.HTTPResponse:
    """The answer to bytes sent as they are."""
    place = urlsplit(server.url)
    connection = socket.create_connection((place.hostname, place.port), 30)
    connection.sendall(data)
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer


HEAD = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_chunked_body_is_counted_while_it_is_read(server: Served):
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    answer = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 13)
    assert answer.status == 413


def test_a_body_that_says_it_is_huge_is_not_waited_for(server: Served):
    start = time.monotonic()
    answer = raw(server, HEAD + b"Content-Length: 99999999999\r\n\r\n{")
    assert answer.status == 413 and time.monotonic() - start < 10


def test_a_body_that_does_not_come_is_not_waited_for_long(world):
    with serving(world.source, read_seconds=0.2) as served:
        answer = raw(served, HEAD + b"Content-Length: 20\r\n\r\n{")
        assert (answer.status, "did not arrive" in json.loads(answer.read())["error"]["message"]) == (408, True)


@pytest.mark.parametrize("data", [b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/x\r\n\r\n"])
def test_what_is_no_http_is_refused_and_harms_nobody(server: Served, data: bytes):
    assert raw(server, data).status == 400
    assert server.get("health").status_code == 200
