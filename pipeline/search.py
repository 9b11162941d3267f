"""Search an index from the command line: text, a picture or both in, ranked candidates out.

    python pipeline/search.py --text "two red circles"
    python pipeline/search.py --image photo.jpg --want text --json
    python pipeline/search.py --text "the same in blue" --image photo.jpg --save-images found store=.puma/store
    python pipeline/search.py --queries asked.jsonl --json
    python pipeline/search.py --text milk --where "brand=Arla" --where "price<20" index.corpus=products.csv

A file of queries has one JSON object in each line with `text`, `image` (a path that starts from the file), `want` and
`where`; its answers come in one batch.

The index is that of the newest pipeline run whose configuration agrees with every key=value given. No Ray is started,
and nothing heavy is imported before the arguments are known to be good.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: the repository, not this directory, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.collector import spare_collector

    spare_collector()

from pipeline.lookup.indexes import find_index, open_retriever
from pipeline.lookup.queries import ask, read_queries
from pipeline.lookup.results import as_json, print_table, save_images
from pipeline.terminal import Parser, json_command

BATCH = 32  # queries that the model embeds at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one search; returns the exit code: 0 found or nothing found, 2 bad input, 1 the store is damaged."""
    return json_command(lambda: parse(sys.argv[1:] if arguments is None else arguments), search)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; see `--help`."""
    parser = Parser("search", __doc__)
    add = parser.add_argument
    add("--text", help="words to search for")
    add("--image", type=Path, metavar="FILE", help="picture to search with")
    add("--queries", type=Path, metavar="FILE", help="JSONL of queries with text, image, want, where")
    add("--where", action="append", default=[], metavar="COND", help="price<20; all have to hold")
    add("--backend", default="", metavar="NAME", help="exact, lance or faiss instead of the index's own")
    add("--want", metavar="KIND", help="text, image or image,text; left out: pictures where possible")
    add("-k", type=int, default=10, metavar="N", help="number of results (default 10)")
    add("--json", action="store_true", help="print one JSON object on stdout")
    add("--save-images", type=Path, metavar="DIR", help="write the found pictures to DIR, by rank")
    add("overrides", nargs="*", metavar="key=value", help="which run's index, and store=…")
    return parser.parse_mixed(arguments)


def search(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Checks everything that needs no model, then searches; prints tables, or fills `answer` for --json."""
    inputs = read_queries(options)
    store, keys, student = find_index(options.overrides)
    retriever = open_retriever(store, keys["index"], options.backend, student)
    queries = [ask(retriever, given) for given in inputs]
    parts = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    found = [results for part in parts for results in retriever.search_many(part, options.k)]
    if options.save_images:
        for number, results in enumerate(found, start=1):
            save_images(retriever, results, options.save_images / (f"{number:03d}" if options.queries else ""))
    if options.json:
        answers = [as_json(query, results, keys["index"]) for query, results in zip(queries, found, strict=True)]
        answer |= {"answers": answers} if options.queries else answers[0]
        return
    for query, results in zip(queries, found, strict=True):
        print_table(query, results, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
