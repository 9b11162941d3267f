"""What stands before every route: who may ask, from which page, how long a body may take, and what every answer says.

One ASGI middleware and not a chain: the order of the checks is the order of the lines. Bodies are
measured by Starlette's own middleware, which counts while it reads, chunked bodies too.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.web.batching import Busy, Gate
from pipeline.web.limits import RequestLimits
from pipeline.web.meters import Meters

LOG = logging.getLogger("puma.serve")
OPEN = {"/", "/page.css", "/page.js", "/icon.svg", "/health", "/openapi.json"}
"""Paths that need no token: the page itself holds no data, and a load balancer asks for health."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
RETRY_AFTER = "1"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    `token` is what they have to know; None lets everybody in. `hosts` are the names that the server may be called by;
    empty is any. A server on this machine without a token is called by local names only: else a web page could reach
    it under a name of its own that points to 127.0.0.1 (DNS rebinding).

    `origin` is where browsers find the page of a server behind a proxy, which may call it by another Host; empty is
    where they reach it. The alternative was to believe Forwarded headers, which whoever passes by the proxy can write.
    """

    token: str | None = None
    hosts: frozenset[str] = frozenset()
    origin: str = ""

    @classmethod
    def of(cls, host: str, token: str | None, origin: str = "") -> "Access":
        """For a server that binds to `host`."""
        local = host in LOOPBACK and token is None
        public = {host_name(origin.partition("//")[2])} if origin else set()
        return cls(token, frozenset(LOOPBACK | public) if local else frozenset(), origin)

    def may_ask(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may ask the server by the name `host`."""
        return origin == self.origin or origin.partition("//")[2] == host


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Every error of the server, in OpenAI's shape: one line that says what is wrong and how to fix it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind}}, status, dict(headers or {}))


def busy(message: str) -> JSONResponse:
    """503 with the time to come again."""
    return error(503, message, {"retry-after": RETRY_AFTER})


class Guard:
    """The middleware; see the module header."""

    def __init__(self, app: ASGIApp, access: Access, limits: RequestLimits, meters: Meters) -> None:
        self.app = RequestBodyLimitMiddleware(app, limits.body_bytes)
        self.access, self.limits, self.meters = access, limits, meters
        self.digest = None if access.token is None else sha256(access.token.encode()).digest()
        self.gate = Gate(limits.bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # what GET would say; the server leaves the body out by its own scope
            scope = {**scope, "method": "GET"}
        start, status = time.perf_counter(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, send_guarded)
        except Exception:
            LOG.exception("%s %s failed", scope["method"], route_of(scope))
            if status:  # too late for another answer
                raise
            await error(500, "the server failed at this; its log says why")(scope, receive, send_guarded)
        finally:
            self.meters.answered(route_of(scope), status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refuse(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["method"] == "GET":
            await self.app(scope, receive, send)
        else:
            await self._with_body(scope, receive, send)

    def refuse(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that may not pass by its head; None where it may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.access.hosts and host_name(host) not in self.access.hosts:
            return error(421, "this server answers to local names only; give it a token or --public-url")
        origin = headers.get("origin")
        if origin and scope["method"] != "GET" and not self.access.may_ask(origin, host):
            return error(403, "a page of another origin may not ask this server; behind a proxy give --public-url")
        if self.digest is not None and scope["path"] not in OPEN and not self.knows(headers.get("authorization", "")):
            return error(401, "send the header Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            told = f"the body is compressed as {coding[:20]!r}; send it as it is, without Content-Encoding"
            return error(415, told, {"accept-encoding": "identity"})
        if declared_size(headers) > self.limits.body_bytes:
            return error(413, f"the body has more than {self.limits.body_bytes:,} bytes; send less")
        return None

    def knows(self, authorization: str) -> bool:
        """Whether the header has the token; takes the same time wherever the first difference is."""
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(sha256(given.strip().encode("utf-8", "replace")).digest(), self.digest or b"")
        return same and scheme.lower() == "bearer"

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a request with a body, which has to arrive in time."""
        deadline = time.monotonic() + self.limits.read_seconds
        done = False

        async def receive_in_time() -> Message:
            nonlocal done
            if done:  # waiting for the client to hang up takes as long as it takes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, deadline - time.monotonic()))
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {self.limits.read_seconds:g} s") from None
            done = not message.get("more_body", False)
            return message

        try:
            with self.gate.entered(self._size(scope)):
                await self.app(scope, receive_in_time, send)
        except Busy:
            await busy("too many requests at once; come again in a second")(scope, receive, send)

    def _size(self, scope: Scope) -> int:
        """Bytes that a body may take: what it says, or as much as may be where it does not say."""
        size = declared_size(Headers(scope=scope))
        return self.limits.body_bytes if size < 0 else size


def declared_size(headers: Headers) -> int:
    """The Content-Length; -1 where there is none."""
    size = headers.get("content-length", "")
    return int(size) if size.isdecimal() and len(size) < 20 else -1


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def route_of(scope: Scope) -> str:
    """The path's template; one word for all that no route knows, so that strangers can't grow the metrics."""
    route: object = scope.get("route")
    return getattr(route, "path", "other")
