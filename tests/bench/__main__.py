"""Measurements side by side in one process, as ratios: `python -m tests.bench NAME|all [--json] [--output FILE]`.

Each benchmark alternates ours and the rival for several rounds, so that a busy machine slows both; the ratio above 1
means that ours is better. `--json` has the least, median and largest ratio, and what ours and the rival took. Nothing
here is a test: no time is asserted anywhere. `all` is all that need neither a GPU, nor vLLM, like `vllm`, nor, like
`overhead`, an hour. `scale` and `bill` compare nothing; they have options of their own. `python -m tests.bench NAME
--help` says what a benchmark compares.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.ablation.document import check_output, describe_machine, write_section
from stages.contract.context import InputError
from tests.bench import bill, scale
from tests.bench.costs import costs
from tests.bench.depth import depth
from tests.bench.distill import distill
from tests.bench.embed import embed
from tests.bench.gpu import gpu
from tests.bench.gradcache import gradcache
from tests.bench.growth import growth
from tests.bench.ingest import ingest
from tests.bench.overhead import overhead
from tests.bench.pictures import pictures
from tests.bench.search import search
from tests.bench.serve import serve
from tests.bench.starts import starts
from tests.bench.train import train
from tests.bench.turns import compare
from tests.bench.vllm import vllm


def mixed_rows(count: int = 96) -> list[Any]:
    """Short and long texts, pictures, and both, in turn."""
    from stages.model.rows import Row
    from tests.tiny_models import picture

    image = picture(84, 84)
    kinds = (
        Row("A red circle."),
        Row("Find the picture.\n" + "two green stars left of a blue square " * 8),
        Row(None, image),
        Row("What colour is it?", image),
    )
    return [kinds[index % len(kinds)] for index in range(count)]


def padding(directory: Path) -> dict[str, Any]:
    """Chunks of like length against one rectangle padded to the longest row, which is what a stock processor makes."""
    from stages.model import inputs
    from stages.model.encoder import Encoder
    from tests.tiny_models import write_checkpoint

    encoder, rows = Encoder.load(write_checkpoint(directory, "qwen2_vl", layers=4)), mixed_rows()
    spread = inputs.SPREAD

    def one_rectangle() -> None:
        inputs.SPREAD = float("inf")
        encoder.encode(rows)
        inputs.SPREAD = spread

    return compare(lambda: encoder.encode(rows), one_rectangle, len(rows))


def index(directory: Path) -> dict[str, Any]:
    """A query by the lance index against exact search, in CPU time, on 200,000 × 512 vectors."""
    from tests.bench.index import run

    return run(directory)


BENCHMARKS = {
    "embed": embed,
    "train": train,
    "distill": distill,
    "starts": starts,
    "search": search,
    "ingest": ingest,
    "overhead": overhead,
    "growth": growth,
    "depth": depth,
    "padding": padding,
    "gradcache": gradcache,
    "serve": serve,
    "vllm": vllm,
    "pictures": pictures,
    "costs": costs,
    "index": index,
    "gpu": gpu,
}
TITLES = {
    "distill": "Distillation beside the published code",
    "depth": "Every depth against its share",
    "starts": "Commands that have nothing to do",
    "search": "Search beside a plain script",
    "ingest": "Ingest beside a loop and beside datasets",
    "overhead": "What a run takes beyond its work",
    "vllm": "The server beside vLLM's",
    "growth": "Growth",
}
"""Sections of documents that bring their own heading, so that it stands nowhere without its table."""
APART = ("gpu", "overhead", "vllm")
DOCUMENTS = {"scale": scale, "bill": bill}
"""Those that compare nothing."""


def head(name: str) -> str:
    """The command of a benchmark, and where and with which versions it ran."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return f"`python -m tests.bench {name}`, {datetime.now(UTC):%-d %B %Y}, {describe_machine()}; {versions}."


def command_line() -> argparse.ArgumentParser:
    """The names of all benchmarks, each with its options and with what it says of itself."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, formatter_class=layout)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--output", type=Path, metavar="FILE", help="Markdown; the sections of these are rewritten")
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    told = {name: run.__doc__ for name, run in BENCHMARKS.items()}
    told["all"] = f"All of the above but {', '.join(APART)}."
    for name, text in told.items():
        names.add_parser(name, help=text, description=text, parents=[options])
    for name, module in DOCUMENTS.items():
        names.add_parser(name, help=module.__doc__.partition(":")[0], add_help=False)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says, or complains in one line; the exit code."""
    try:
        if arguments and arguments[0] in DOCUMENTS:
            return DOCUMENTS[arguments[0]].main(arguments[1:])
        return run_benchmarks(command_line().parse_args(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_benchmarks(options: argparse.Namespace) -> int:
    """Runs the named benchmarks; with --json one object on stdout."""
    check_output(options.output)
    names = [name for name in BENCHMARKS if name not in APART] if options.name == "all" else [options.name]
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            results[name] = BENCHMARKS[name](Path(directory))
        ratio = results[name]["ratio"]
        summary = f"{name}: {ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f})"
        print(f"{summary}. {BENCHMARKS[name].__doc__}", file=sys.stderr)
        if options.output and "section" in results[name]:
            title = [f"## {TITLES[name]}"] if name in TITLES else []
            parts = [*title, head(name), results[name]["section"]]
            write_section(options.output, f"bench {name}", "\n\n".join(parts))
    if options.json:
        print(json.dumps(results[names[0]] if len(names) == 1 else results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
