"""Search over HTTP and on a page: the index of the newest run that agrees with every key=value given.

    python pipeline/serve.py
    python pipeline/serve.py --port 9000 data.kind=mbeir store=.puma/store
    PUMA_TOKEN=… python pipeline/serve.py --host 0.0.0.0
    PUMA_TOKEN=… python pipeline/serve.py --public-url https://search.example.com
    python pipeline/serve.py --ray --replicas 4 --backend faiss

One process with uvicorn, or with `--ray` (or where RAY_ADDRESS names a cluster) Ray Serve with replicas of the same
application. Everything heavy is imported once the arguments are known to be good.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

if __package__ in (None, ""):  # started by its path: the repository, not this directory, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.collector import spare_collector

    spare_collector()

from pipeline.terminal import Parser, json_command
from pipeline.web.limits import RequestLimits
from pipeline.web.server import serve
from stages.contract.context import InputError
from stages.search.choice import HELD

PORTS = {"http": 80, "https": 443}  # which browsers leave out


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is stopped; returns the exit code: 0 or 130 stopped, 2 bad input, 1 the store is damaged."""
    given = sys.argv[1:] if arguments is None else arguments
    return json_command(lambda: parse(given), lambda options, _: serve(options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; see `--help`."""
    parser = Parser("serve", __doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to bind to (default 127.0.0.1)")
    add("--port", type=int, default=8000, metavar="P", help="port (default 8000; 0 takes a free one)")
    add("--token-file", type=Path, metavar="FILE", help="holds the token callers need; or PUMA_TOKEN")
    add("--public-url", default="", metavar="URL", help="the page's address behind a proxy")
    add("--no-compare", action="store_true", help="never load the teacher for comparisons")
    add("--batch", type=int, default=32, metavar="N", help="queries answered together (default 32)")
    add("--backend", default="", choices=tuple(HELD), help="what answers, instead of the index's own")
    add("--ray", action="store_true", help="run on Ray Serve; so does a RAY_ADDRESS")
    add("--replicas", type=int, default=1, metavar="N", help="copies on Ray Serve (default 1)")
    add("overrides", nargs="*", metavar="key=value", help="which run's index, and store=…")
    options = parser.parse_mixed(arguments)
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port {options.port} is no port; give a number from 0 to 65535")
    options.public_url = read_origin(options.public_url)
    if not 1 <= options.batch <= RequestLimits.waiting:
        most = RequestLimits.waiting
        raise InputError(f"--batch {options.batch} is no number of queries that can wait together; give 1 to {most}")
    if options.replicas < 1:
        raise InputError(f"--replicas {options.replicas} would serve nothing; give 1 or more")
    return options


def read_origin(url: str) -> str:
    """The origin that browsers name for a page at `url`: scheme, name and port. Raises InputError."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
        if url and (parts.scheme not in PORTS or not name.isascii() or not name or parts.username is not None):
            raise ValueError
    except ValueError:
        raise InputError(f"--public-url {url} is no address of a page; give one such as https://example.com") from None
    host = f"[{name}]" if ":" in name else name
    return url and f"{parts.scheme}://{host}{f':{port}' if port not in (None, PORTS[parts.scheme]) else ''}"


if __name__ == "__main__":
    sys.exit(main())
