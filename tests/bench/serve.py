"""The search server under load: `python -m tests.bench serve`.

The command in a process of its own, over the store of `make demo` (PUMA_STORE names another; without one, over the
tests' small world), asked by one asynchronous client, each connection as fast as it is answered. Ours answers in
batches of up to 32, the rival one by one: the same program with `--batch 1`. Client and server share the machine's
cores, so absolute numbers are low ends. `python -m tests.bench.serve` writes them to docs/performance.md.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.ablation.document import processor, write_section
from stages.contract.params import cores
from tests.bench.turns import span

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
SECONDS = 6.0
CONNECTIONS = (1, 8, 32, 128)
ROUNDS = 3
CROWD = 600  # connections at once for the last line: more than may wait


@dataclass(frozen=True)
class Load:
    """What one run of the client saw."""

    connections: int
    kind: str
    answers: int
    refused: int
    errors: int
    rate: float
    p50: float
    p99: float
    batch: float
    megabytes: float


@contextmanager
def server(batch: int, store: str) -> Iterator[str]:
    """The address of the command, running."""
    command = [sys.executable, str(ROOT / "pipeline" / "serve.py"), "--port", "0", "--batch", str(batch)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PUMA_TOKEN", "RAY_ADDRESS")}
    process = subprocess.Popen([*command, f"store={store}"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        if not line.startswith("Puma serves "):
            raise SystemExit("the server did not start: `make demo` makes the store that it needs")
        yield line.split()[2].rstrip("/")
    finally:
        process.terminate()
        process.wait(30)


async def ask(url: str, connections: int, kind: str, seconds: float) -> Load:
    """Keeps `connections` connections busy for a while."""
    import aiohttp

    unlimited = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=unlimited) as session:
        shown = (await (await session.get("/about")).json())["examples"]
        queries = await bodies(session, shown, kind)
        before, times, counts = await metrics(session), [], {"refused": 0, "errors": 0}
        end = time.perf_counter() + seconds

        async def one(number: int) -> None:
            place = number
            while time.perf_counter() < end:
                start = time.perf_counter()
                try:
                    async with session.post("/search", **queries[place % len(queries)]()) as answer:
                        await answer.read()
                        if answer.status == 200:
                            times.append(time.perf_counter() - start)
                        else:
                            counts["refused" if answer.status == 503 else "errors"] += 1
                            await asyncio.sleep(float(answer.headers.get("retry-after", 0)))
                except aiohttp.ClientError:
                    counts["errors"] += 1
                place += connections

        start = time.perf_counter()
        await asyncio.gather(*map(one, range(connections)))
        took, after = time.perf_counter() - start, await metrics(session)
    times.sort()
    batches = {name: after.get(name, 0) - before.get(name, 0) for name in after}
    size = 'puma_batch_size_%s{work="search student"}'
    return Load(
        connections,
        kind,
        len(times),
        counts["refused"],
        counts["errors"],
        len(times) / took,
        1000 * median(times),
        1000 * times[int(0.99 * len(times))],
        batches[size % "sum"] / max(1, batches[size % "count"]),
        after["process_resident_memory_bytes"] / 1e6,
    )


async def bodies(session: Any, shown: list[dict], kind: str) -> list[Any]:
    """Makers of request bodies: the index's own texts, or its pictures as uploads."""
    import aiohttp

    if kind == "text":
        texts = [one["text"] for one in shown if one["text"]]
        return [lambda text=text: {"json": {"text": text, "want": "image", "k": 10}} for text in texts]
    pictures = [await (await session.get(f"/image/{one['image']}")).read() for one in shown if one["image"]]

    def form(data: bytes) -> dict[str, Any]:
        made = aiohttp.FormData({"want": "text", "k": "10"})
        made.add_field("image", data, filename="x")
        return {"data": made}

    return [lambda data=data: form(data) for data in pictures]


async def metrics(session: Any) -> dict[str, float]:
    """The server's own counters."""
    text = await (await session.get("/metrics")).text()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def find_store(directory: Path) -> str:
    """The demo's store, or one made in `directory`."""
    from pipeline.artifacts.store import open_store
    from tests.search_world import make_world, write_index, write_run

    place = os.environ.get("PUMA_STORE", str(ROOT / ".puma" / "store"))
    if open_store(place).manifests().get("index"):
        return place
    store, artifacts = make_world(directory)
    write_run(store, {**artifacts, "index": write_index(store, artifacts)})
    return str(store.root)


def serve(directory: Path) -> dict[str, Any]:
    """Queries per second of 32 connections, answered in batches against one by one."""
    store = find_store(directory)
    with server(32, store) as ours, server(1, store) as rival:
        pairs = [[asyncio.run(ask(url, 32, "text", SECONDS)) for url in (ours, rival)] for _ in range(ROUNDS)]
    rates = [median(pair[side].rate for pair in pairs) for side in (0, 1)]
    return {
        "ratio": span(one.rate / other.rate for one, other in pairs),
        "ours": {"queries per second": rates[0], "mean batch": median(one.batch for one, _ in pairs)},
        "rival": {"queries per second": rates[1]},
    }


def write_page() -> None:
    """Measures everything and writes the section of docs/performance.md."""
    with tempfile.TemporaryDirectory() as directory:
        ratio = serve(Path(directory))["ratio"]
        with server(32, find_store(Path(directory))) as ours:
            lines = [asyncio.run(ask(ours, count, "text", SECONDS)) for count in CONNECTIONS]
            lines.append(asyncio.run(ask(ours, 32, "picture", SECONDS)))
            lines.append(asyncio.run(ask(ours, CROWD, "text", SECONDS)))
    write_section(PAGE, "bench serve", table(lines, ratio))


def table(lines: list[Load], ratio: dict[str, float]) -> str:
    """The section of docs/performance.md."""
    rows = [
        f"| {one.connections} | {one.kind} | {one.rate:,.0f} | {one.p50:.0f} | {one.p99:.0f} | {one.batch:.1f} "
        f"| {one.refused} | {one.errors} | {one.megabytes:,.0f} |"
        for one in lines
    ]
    date = f"{datetime.now(UTC):%d %B %Y}"
    return "\n".join(
        [
            "## Serving",
            f"`python -m tests.bench.serve`, {date}, {cores()} cores ({processor()}), the",
            "student and index of `make demo`; client and server share the cores. Each connection asks again as soon",
            f"as it is answered; {SECONDS:g} seconds a line; times in milliseconds.",
            "",
            "| connections | query | queries/s | p50 | p99 | mean batch | 503 | errors | server MB |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            f"With 32 connections, batches answer {ratio['median']:.1f} times as many queries per second as the",
            f"same server with `--batch 1` ({ratio['min']:.1f} to {ratio['max']:.1f} in {ROUNDS} rounds). In the last",
            "line more connections ask than queries may wait: the rest is refused with 503 and Retry-After, and",
            "memory stays.",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Writes the section; `--help` says what it is of."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serve", description=__doc__, formatter_class=layout)
    parser.parse_args(arguments)
    write_page()


if __name__ == "__main__":
    main(sys.argv[1:])
