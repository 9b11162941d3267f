"""Our server beside vLLM's: embeddings of texts over HTTP, by one client, of the same exported student in float32.

Both servers run all the time on the same cores and are asked in turns: one text to a request, over one connection and
over many, and a list of texts in one request. The vectors of both are compared first. Needs PUMA_VLLM_PYTHON.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from stages.evaluation.markdown_table import markdown_table
from tests.bench.made import made
from tests.bench.turns import ratio, side_by_side, speeds, turns

ROUNDS, CONNECTIONS, TEXTS = 5, 16, 64
NAME = "puma"
CLOSE = 0.99999
Bodies = Sequence[Mapping[str, Any]]


def vllm(directory: Path) -> dict[str, Any]:
    """Texts embedded per second by our server against vLLM's."""
    from pipeline.lookup.indexes import find_index
    from stages.export.loaders import VLLM_PYTHON, vllm_python
    from tests.bench import serve
    from tests.s3.servers import free_port
    from tests.vllm_server import vllm_server

    if not vllm_python():
        raise SystemExit(f"vllm: {VLLM_PYTHON} names no Python that has it; make test-vllm makes one in build/vllm")
    place = next(one for one in made() if one.startswith("store="))
    store, keys, _ = find_index([place])
    model = store.artifact("train", keys["train"]).local("model")
    asked = requests(model)
    with serve.server(32, place.removeprefix("store=")) as ours, vllm_server(model, directory, free_port()) as theirs:
        table = [measure(case, ours, theirs, *bodies) for case, bodies in asked.items()]
    return side_by_side(table, section(table), "case")


def requests(model: Path) -> dict[str, tuple[Bodies, Bodies, int]]:
    """(what ours is asked, what vLLM is asked, connections) of each case: the same texts, each in a prompt of its own.

    A list of texts goes to vLLM with its prompts written out, for its `input` skips the chat template.
    """
    from transformers import AutoTokenizer

    texts = [f"A red circle left of {number} blue squares." for number in range(TEXTS)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = [[{"role": "user", "content": text}] for text in texts]
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    single = [{"model": NAME, "messages": chat} for chat in chats]
    return {
        "one text to a request, one after the other": (single[:CONNECTIONS], single[:CONNECTIONS], 1),
        f"one text to a request, {CONNECTIONS} connections": (single, single, CONNECTIONS),
        f"{TEXTS} texts in one request": ([{"model": NAME, "input": texts}], [{"model": NAME, "input": prompts}], 1),
    }


def measure(case: str, ours: str, theirs: str, our_bodies: Bodies, their_bodies: Bodies, connections: int) -> dict:
    """A case, in turns; SystemExit where the vectors differ."""
    runs = {
        "ours": partial(embed, ours, our_bodies, connections),
        "rival": partial(embed, theirs, their_bodies, connections),
    }
    vectors = [run() for run in runs.values()]
    cosine = float(np.einsum("nd,nd->n", *vectors).min())
    if cosine < CLOSE:
        raise SystemExit(f"vllm: {case}: least cosine {cosine:.6f} between the servers' vectors")
    seconds = turns(runs, ROUNDS)
    rates = {side: {"texts per second": len(vectors[0]) / median(times)} for side, times in seconds.items()}
    found = {"case": case, **rates, "ratio": ratio(seconds["rival"], seconds["ours"]), "cosine": cosine}
    print(f"vllm: {found}", file=sys.stderr, flush=True)
    return found


def embed(url: str, bodies: Bodies, connections: int) -> np.ndarray:
    """float32 [N, D]: the vectors of all inputs, in their order."""
    return np.concatenate(asyncio.run(ask_all(url, bodies, connections)))


async def ask_all(url: str, bodies: Bodies, connections: int) -> list[np.ndarray]:
    """See `embed`."""
    import aiohttp

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def one(body: Mapping[str, Any]) -> np.ndarray:
            async with session.post("/v1/embeddings", json=body) as answer:
                answer.raise_for_status()
                data = (await answer.json())["data"]
            return np.array([entry["embedding"] for entry in data], np.float32)

        if connections == 1:
            return [await one(body) for body in bodies]
        return await asyncio.gather(*map(one, bodies))


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [["requests", "texts/s", "vLLM", "ratio", "in the rounds", "least cosine"]]
    lines += [[one["case"], *speeds(one), f"{one['cosine']:.6f}"] for one in table]
    return markdown_table(lines)
