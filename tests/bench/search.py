"""Search beside a plain script: the same student by sentence-transformers, the same vectors in a flat FAISS index.

One query at a time and 64 at once, in a process that is ready (the retriever, and over HTTP with client and server on
the same cores, in turns with the script's own object), and by commands that start for it. What is found is compared
before anything is timed: the scores agree, and with them the candidates, ties apart.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.made import ROOT, call, made
from tests.bench.plain_search import K, Plain
from tests.bench.turns import ratio, side_by_side, speeds, turns

MANY, SINGLE, ROUNDS = 64, 16, 5
WANT = "image"
CLOSE = 2e-3


def search(directory: Path) -> dict[str, Any]:
    """Queries per second of retriever, HTTP and command against a plain script of sentence-transformers and FAISS."""
    from pipeline.lookup.indexes import find_index, open_retriever
    from stages.export.loaders import see_torchvision
    from tests.bench.floor import shares
    from tests.bench.serve import server

    see_torchvision()  # before transformers is imported
    place = next(one for one in made() if one.startswith("store="))
    store, keys, _ = find_index([place])
    ready = open_retriever(store, keys["index"])
    queries = [f"{one.text} {number}" for number, one in enumerate(ready.examples(4 * MANY)) if one.text]
    queries = (queries * MANY)[:MANY]
    asked = ready.ask(queries[0], None, WANT)
    model, files = store.artifact("train", keys["train"]).local("model"), store.artifact("index", keys["index"])
    paths = [str(path) for path in files.files("embeddings")]
    prompt = f"{asked.instruction}\n" if asked.instruction else ""
    given = {"model": str(model), "files": paths, "want": WANT, "prompt": prompt}
    plain = Plain(**given)
    check(ready, plain, queries)
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
        "retriever, one": (partial(singly, ready.search, queries), partial(singly, plain_one(plain), queries), SINGLE),
        "retriever, 64": (partial(together, ready, queries), partial(plain.search, queries), MANY),
    }
    with server(32, place.removeprefix("store=")) as url:
        runs["HTTP, one"] = (partial(over_http, url, queries[:SINGLE], 1), runs["retriever, one"][1], SINGLE)
        runs["HTTP, 64"] = (partial(over_http, url, queries, MANY), runs["retriever, 64"][1], MANY)
        table = [measure(name, *run) for name, run in runs.items()]
    profile = shares(runs["retriever, 64"][0], "tokens, reading what was found, Python")
    table += [measure(f"command, {count}", *commands(directory, place, given, queries[:count])) for count in (1, MANY)]
    return side_by_side(table, f"{section(table)}\n\nWhere the time of 64 goes in the retriever: {profile}.", "case")


def measure(name: str, ours: Callable[[], Any], rival: Callable[[], Any], count: int) -> dict[str, Any]:
    """A case, in turns."""
    seconds = turns({"ours": ours, "rival": rival}, ROUNDS)
    each = {side: {"ms each": 1e3 * median(times) / count} for side, times in seconds.items()}
    found = {"case": name, **each, "ratio": ratio(seconds["rival"], seconds["ours"])}
    print(f"search: {found}", file=sys.stderr, flush=True)
    return found


def check(ready: Any, plain: Plain, queries: Sequence[str]) -> None:
    """Both find the same, in the order of their scores."""
    ours = [[one.score for one in found] for found in together(ready, queries)]
    theirs = [[score for _, score in found] for found in plain.search(queries)]
    worst = max(abs(one - other) for pair in zip(ours, theirs, strict=True) for one, other in zip(*pair, strict=True))
    if worst > CLOSE:
        raise SystemExit(f"search: scores differ by {worst:.4f} from those of the plain script")


def together(ready: Any, queries: Sequence[str]) -> list[list[Any]]:
    """All queries in one batch of the retriever."""
    return ready.search_many([ready.ask(query, None, WANT) for query in queries], K)


def singly(ask: Callable[..., Any], queries: Sequence[str]) -> None:
    """One query after the other."""
    for query in queries[:SINGLE]:
        ask(query, want=WANT)


def plain_one(plain: Plain) -> Callable[..., Any]:
    """The script, asked for one query."""
    return lambda query, want: plain.search([query])


def over_http(url: str, queries: Sequence[str], connections: int) -> None:
    """All queries, over so many connections at once."""
    asyncio.run(ask_all(url, queries, connections))


async def ask_all(url: str, queries: Sequence[str], connections: int) -> None:
    """See `over_http`."""
    import aiohttp

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def one(query: str) -> None:
            async with session.post("/search", json={"text": query, "want": WANT, "k": K}) as answer:
                answer.raise_for_status()
                await answer.read()

        if connections == 1:
            for query in queries:
                await one(query)
        else:
            await asyncio.gather(*map(one, queries))


def commands(
    directory: Path, place: str, given: dict[str, Any], queries: Sequence[str]
) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """`search.py` and the script, each a process that starts, loads, answers and ends."""
    file = directory / f"{len(queries)}.jsonl"
    file.write_text("\n".join(json.dumps({"text": query, "want": WANT}) for query in queries))
    ours = [sys.executable, str(ROOT / "pipeline" / "search.py"), "--queries", str(file), "--json", place]
    plain = [sys.executable, "-m", "tests.bench.plain_search", json.dumps(given | {"queries": list(queries)})]
    return partial(call, ours), partial(call, plain), len(queries)


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [["queries", "ms each", "plain script", "ratio", "in the rounds"]]
    lines += [[one["case"], *speeds(one, digits=1)] for one in table]
    told = (
        "The same student by sentence-transformers, the same vectors in a flat FAISS index; the script beside HTTP is"
        " asked in its own process. A command's time holds its start."
    )
    return f"{told}\n\n{markdown_table(lines)}"
