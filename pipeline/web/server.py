"""One call of `serve.py`: checks what it was given, binds, loads the index, and serves it here or on Ray."""

import argparse
import os
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.execution.cluster import connected, inside_cluster
from pipeline.lookup.indexes import find_index
from pipeline.web.served import ServedIndex
from stages.contract.context import InputError
from stages.contract.params import Cluster

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

TOKEN_LENGTH = 16  # characters at least: a token that can be guessed guards nothing
CONNECTIONS = 2000  # at once; more are refused before a byte is read
NAME = "puma"  # of the deployment on Ray Serve
QUEUED = 256  # requests that wait at a proxy of Ray Serve for a replica; more are refused with a 503
QUIET = {"log_level": "WARNING", "enable_access_log": False}
DRAIN_SECONDS = 5  # for answers under way when the server has to stop


def serve(options: argparse.Namespace) -> None:
    """Finds the index, then serves it."""
    token = read_token(options.token_file)
    store, keys, student = find_index(options.overrides)
    served = ServedIndex(store, keys, not options.no_compare, options.backend, student)
    os.environ["HF_HUB_OFFLINE"] = "1"  # a server fetches nothing
    on_ray = options.ray or inside_cluster()
    if options.replicas > 1 and not on_ray:
        raise InputError("--replicas needs Ray Serve; add --ray")
    check_installed(on_ray)
    bound = bind(options.host, options.port)
    warn_if_open(options.host, token, options.public_url)
    (serve_on_ray if on_ray else serve_here)(options, served, token, bound)


def read_token(path: Path | None) -> str | None:
    """The token from the file or PUMA_TOKEN; None where neither is given. Never an argument: those show in `ps`."""
    if path is None:
        token, place = os.environ.get("PUMA_TOKEN"), "PUMA_TOKEN"
    else:
        try:
            token, place = path.read_text(encoding="utf-8").strip(), f"--token-file {path}"
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InputError(f"--token-file {path} can't be read: {reason}; give a text file with the token") from None
    if token is None:
        return None
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{place} must hold {TOKEN_LENGTH} or more plain characters, as `openssl rand -hex 24` makes")
    return token


def check_installed(on_ray: bool) -> None:
    """Raises InputError where the server's libraries are missing."""
    needed = ("fastapi", "prometheus_client", "python_multipart", "uvicorn", *(("ray.serve",) if on_ray else ()))
    try:
        for name in needed:
            import_module(name)
    except ImportError as error:
        extra = "serve-ray" if on_ray else "serve"
        raise InputError(f"{error.name} is not installed; `pip install -e '.[{extra}]'` brings it") from None


def warn_if_open(host: str, token: str | None, public: str) -> None:
    """Says so where everybody who reaches the address may search."""
    from pipeline.web.guard import LOOPBACK

    if token is None and (host not in LOOPBACK or public):
        print(
            f"warning: {public or host} is open to everyone who can reach it, and no token is asked; set PUMA_TOKEN or"
            " --token-file, and put TLS in front",
            file=sys.stderr,
        )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, before any model is loaded. Raises InputError where the address can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)  # named, or asyncio leaves Nagle's 40 ms on each connection
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a host"
        raise InputError(f"can't bind to {host}:{port}: {why}; give another --host or --port") from None


def address(host: str, port: int) -> str:
    """The page's address; IPv6 hosts in brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve_here(options: argparse.Namespace, served: ServedIndex, token: str | None, bound: socket.socket) -> None:
    """In this process, with uvicorn."""
    import uvicorn

    from pipeline.web.guard import Access

    place = address(options.host, bound.getsockname()[1])

    class Server(uvicorn.Server):
        """Says where the page is, once it is there."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"Puma serves {place} (Ctrl-C ends)", flush=True)

    app = served.app(Access.of(options.host, token, options.public_url), options.batch)
    Server(server_settings(app)).run(sockets=[bound])


def server_settings(app: "FastAPI") -> "uvicorn.Config":
    """How uvicorn runs the application."""
    import uvicorn

    # h11 and asyncio always: with httptools installed, uvicorn would take another parser with other limits.
    return uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def serve_on_ray(options: argparse.Namespace, served: ServedIndex, token: str | None, bound: socket.socket) -> None:
    """On the Ray cluster of RAY_ADDRESS, or on a new one: one deployment, as many replicas as asked.

    Each replica loads student and index itself and batches by itself. Ray Serve's own `@serve.batch` was the
    alternative; then the two ways to serve would batch, refuse and measure differently.
    """
    import torch
    from ray import serve

    from pipeline.web.guard import Access

    port = bound.getsockname()[1]
    bound.close()  # it was bound to be refused early; Ray Serve binds for itself
    access, batch = Access.of(options.host, token, options.public_url), options.batch
    resources = {"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": 1}
    with connected(Cluster(workers=options.replicas)):
        serve.start(http_options={"host": options.host, "port": port}, logging_config=QUIET)
        replica = serve.deployment(
            name=NAME,
            num_replicas=options.replicas,
            ray_actor_options=resources,
            max_ongoing_requests=256,
            max_queued_requests=QUEUED,
            logging_config=QUIET,
        )(serve.ingress(lambda: served.app(access, batch))())  # called in each replica
        try:
            serve.run(replica.bind(), name=NAME, route_prefix="/")
            place = address(options.host, port)
            print(f"Puma serves {place} on Ray Serve, {options.replicas} replicas (Ctrl-C ends)", flush=True)
            while True:
                time.sleep(3600)
        finally:
            serve.delete(NAME)
