"""S3 servers for tests, and a proxy in front of one that fails in the ways that real ones do."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Environment variables by which made servers let a process in."""


@contextmanager
def moto_server() -> Iterator[str]:
    """An in-memory server in a thread; its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def upload(address: str, place: Path, key: str) -> None:
    """Puts a file, or all files of a folder, into `bucket`."""
    from pipeline.artifacts import s3

    client = s3.client(address, "us-east-1")
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.is_file():
            below = f"/{path.relative_to(place)}" if path != place else ""
            client.put_object(Bucket="bucket", Key=f"{key}{below}", Body=path.read_bytes())


@contextmanager
def ministack_server(directory: Path) -> Iterator[str]:
    """A server in a process of its own whose objects lie in `directory` and outlive it."""
    port = free_port()
    settings = {
        "BIND_HOST": "127.0.0.1",  # it listens everywhere by default
        "MINISTACK_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(directory),
    }
    log = (directory.parent / "ministack.log").open("ab")
    command = [str(Path(sys.executable).parent / "ministack")]
    server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/_ministack/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        log.close()


def wait_for(address: str, server: subprocess.Popen) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{address} did not come up")


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


Rule = Callable[["Request"], str | None]


class Request:
    """What a rule of the proxy decides by."""

    def __init__(self, method: str, path: str, headers: dict[str, str]) -> None:
        self.method, self.path, self.headers = method, path, headers

    @property
    def conditional(self) -> bool:
        return any(name.lower() in ("if-none-match", "if-match") for name in self.headers)


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """The body of a request, whole; Arrow sends what it writes in chunks of a length that it does not tell before."""
    if handler.headers.get("Transfer-Encoding", "") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    parts = []
    while size := int(handler.rfile.readline().partition(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    while handler.rfile.readline().strip():
        """Trailers."""
    return b"".join(parts)


class Proxy:
    """Passes requests on to an S3 server, except for those that its rule has something else in mind for.

    A rule answers None, or: `500`, `503`, `409`, `403 Code` (answered instead), `done 500`, `done reset` (carried out,
    then answered so), `reset` (not carried out), `truncate` (half of the body), `slow`, `ignore` (conditions dropped).
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.rule: Rule = lambda request: None
        self.log: list[tuple[str, str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()  # looks for its end

    def once(self, action: str, when: Rule) -> None:
        """From now on the first request that `when` is true for meets `action`."""
        left = [action]
        self.rule = lambda request: left.pop() if left and when(request) else None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = read_body(handler)
        request = Request(handler.command, handler.path, dict(handler.headers.items()))
        action = self.rule(request) or ""
        self.log.append((request.method, request.path, action))
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        if action == "ignore":
            headers = {
                name: value for name, value in headers.items() if name.lower() not in ("if-none-match", "if-match")
            }
        if action == "slow":
            time.sleep(0.3)
        if action == "reset":
            return self.reset(handler)
        if action[:1].isdigit():
            return self.answer(handler, *action.partition(" ")[::2])
        link = http.client.HTTPConnection(self.target, timeout=60)
        link.request(request.method, request.path, body, headers)
        told = link.getresponse()
        content = told.read()
        link.close()
        if action == "done reset":
            return self.reset(handler)
        if action == "done 500":
            return self.answer(handler, "500", "")
        handler.send_response_only(told.status)
        skip = ("connection", "transfer-encoding", "content-length")
        for name, value in told.getheaders():
            if name.lower() not in skip:
                handler.send_header(name, value)
        length = told.getheader("Content-Length") if request.method == "HEAD" else len(content)
        handler.send_header("Content-Length", str(length or 0))
        handler.end_headers()
        if action == "truncate":
            handler.wfile.write(content[: len(content) // 2])
            return self.reset(handler)
        handler.wfile.write(content)
        return None

    def answer(self, handler: BaseHTTPRequestHandler, status: str, code: str) -> None:
        code = code or {"500": "InternalError", "503": "SlowDown", "409": "ConditionalRequestConflict"}[status]
        content = (
            b"" if handler.command == "HEAD" else f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        )
        handler.send_response(int(status))
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def reset(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
