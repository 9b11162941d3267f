"""Search over HTTP and on a page: the index of the newest run that agrees with every key=value given.

    python pipeline/serve.py
    python pipeline/serve.py --port 9000 data.kind=mbeir store=.puma/store
    PUMA_TOKEN=… python pipeline/serve.py --host 0.0.0.0
    python pipeline/serve.py --ray --replicas 4 --backend faiss

One process with uvicorn, or with `--ray` (or where RAY_ADDRESS names a cluster) Ray Serve with replicas of the same
application. Everything heavy is imported once the arguments are known to be good.
"""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # started by its path: the repository, not this directory, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.artifacts.store import Artifact, Store
from pipeline.lookup.indexes import find_index, open_retriever
from pipeline.terminal import Parser, exit_code
from stages.contract.context import InputError

if TYPE_CHECKING:
    import uvicorn

    from pipeline.web.engine import Engine
    from pipeline.web.limits import Limits
    from pipeline.web.meters import Meters
    from stages.search.retriever import Retriever

TOKEN_LENGTH = 16  # characters at least: a token that can be guessed guards nothing
BACKENDS = ("exact", "lance", "faiss")
CONNECTIONS = 2000  # at once; more are refused before a byte is read
DRAIN_SECONDS = 5  # for answers under way when the server is told to stop


@dataclass(frozen=True)
class Source:
    """Which artifacts are served. Picklable: on Ray every replica loads them itself."""

    store: Store
    keys: dict[str, str]
    compare: bool
    backend: str = ""
    student: str = ""

    def load(self, limits: "Limits", meters: "Meters") -> "Engine":
        """Loads student and index, and prepares the teacher where there is one."""
        from pipeline.web.engine import Engine

        student = open_retriever(self.store, self.keys["index"], self.backend, self.student)
        teacher = (lambda: self.load_teacher(student)) if self.has_teacher() else None
        return Engine(student, teacher, self.keys["index"], limits, meters)

    def artifact(self, stage: str) -> Artifact:
        """What the run made in a stage."""
        return self.store.artifact(stage, self.keys[stage])

    def has_teacher(self) -> bool:
        """Whether evaluate stored vectors of this very teacher for this very index."""
        stages = ("evaluate", "backbone", "index")
        if not self.compare or not all(self.store.has(stage, self.keys.get(stage, "")) for stage in stages):
            return False
        evaluate, *used = map(self.artifact, stages)
        compared = evaluate.manifest["inputs"]
        same = all(compared[one.stage] == {"key": one.key, "attempt": one.attempt} for one in used)
        return same and bool(evaluate.files("teacher"))

    def load_teacher(self, student: "Retriever") -> "Retriever":
        """The full-depth model over the same candidates, by the vectors that evaluate compared."""
        import torch

        from stages import backbone
        from stages.contract.params import Cluster
        from stages.distributed.embedding import load_encoder
        from stages.search.exact import ExactIndex
        from stages.search.retriever import Retriever

        model = backbone.directory(self.artifact("backbone"))
        encoder = load_encoder(model, Cluster(gpus_per_worker=int(torch.cuda.is_available())))
        index = ExactIndex.open(self.artifact("evaluate"), "teacher").ready()
        return Retriever(encoder, index, student.card, student.candidates, student.images)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is stopped; returns the exit code: 0 or 130 stopped, 2 bad input, 1 the store is damaged."""
    return exit_code(lambda: serve(parse(sys.argv[1:] if arguments is None else arguments)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; see `--help`."""
    parser = Parser("serve", __doc__)
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to bind to (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="port (default 8000; 0 takes a free one)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token callers need; or PUMA_TOKEN")
    parser.add_argument("--no-compare", action="store_true", help="never load the teacher for comparisons")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="queries answered together (default 32)")
    parser.add_argument("--backend", default="", choices=BACKENDS, help="what answers, instead of the index's own")
    parser.add_argument("--ray", action="store_true", help="run on Ray Serve; so does a RAY_ADDRESS")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="copies on Ray Serve (default 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="which run's index, and store=…")
    options = parser.parse_mixed(arguments)
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port {options.port} is no port; give a number from 0 to 65535")
    if options.batch < 1:
        raise InputError(f"--batch {options.batch} would answer nothing; give 1 or more")
    if options.replicas < 1:
        raise InputError(f"--replicas {options.replicas} would serve nothing; give 1 or more")
    return options


def serve(options: argparse.Namespace) -> None:
    """Finds the index, then serves it."""
    from pipeline.execution.cluster import inside_cluster

    token = read_token(options.token_file)
    store, keys, student = find_index(options.overrides)
    source = Source(store, keys, not options.no_compare, options.backend, student)
    os.environ["HF_HUB_OFFLINE"] = "1"  # a server fetches nothing
    on_ray = options.ray or inside_cluster()
    if options.replicas > 1 and not on_ray:
        raise InputError("--replicas needs Ray Serve; add --ray")
    check_installed(on_ray)
    bound = bind(options.host, options.port)
    warn(options.host, token)
    (serve_on_ray if on_ray else serve_here)(options, source, token, bound)


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
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401

        if on_ray:
            import ray.serve  # noqa: F401
    except ImportError as error:
        extra = "serve-ray" if on_ray else "serve"
        raise InputError(f"{error.name} is not installed; `pip install -e '.[{extra}]'` brings it") from None


def warn(host: str, token: str | None) -> None:
    """Says so where everybody who reaches the address may search."""
    from pipeline.web.guard import LOOPBACK

    if host not in LOOPBACK and token is None:
        print(
            f"warning: {host} is open to everyone who can reach it, and no token is asked; set PUMA_TOKEN or"
            " --token-file, and put TLS in front",
            file=sys.stderr,
        )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, before any model is loaded. Raises InputError where the address can't be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        raise InputError(f"can't bind to {host}:{port}: {error.strerror}; give another --host or --port") from None


def address(host: str, port: int) -> str:
    """The page's address; IPv6 hosts in brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve_here(options: argparse.Namespace, source: Source, token: str | None, bound: socket.socket) -> None:
    """In this process, with uvicorn."""
    import uvicorn

    from pipeline.web.app import build_app
    from pipeline.web.guard import Access
    from pipeline.web.limits import Limits
    from pipeline.web.meters import Meters

    told = address(options.host, bound.getsockname()[1])

    class Server(uvicorn.Server):
        """Says where the page is, once it is there."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"Puma serves {told} (Ctrl-C ends)", flush=True)

    limits, meters = Limits(batch=options.batch), Meters()
    # Loaded before the server starts: what is wrong with the store is told in one line and not by a server's log.
    app = build_app(source.load(limits, meters), Access.of(options.host, token), limits, meters)
    Server(server_settings(app)).run(sockets=[bound])


def server_settings(app: Any) -> "uvicorn.Config":
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


def serve_on_ray(options: argparse.Namespace, source: Source, token: str | None, bound: socket.socket) -> None:
    """On Ray Serve."""
    from pipeline.web.replicas import run_replicas

    port = bound.getsockname()[1]
    bound.close()  # it was bound to be refused early; Ray Serve binds for itself
    run_replicas(options, source, token, port, address(options.host, port))


if __name__ == "__main__":
    sys.exit(main())
