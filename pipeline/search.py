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
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if __package__ in (None, ""):  # started by its path: the repository, not this directory, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.artifacts.store import Store, open_store
from pipeline.config.load import read_config
from pipeline.config.sections import Config
from pipeline.config.values import get_value
from pipeline.terminal import Parser, exit_code
from stages.contract.context import InputError

if TYPE_CHECKING:
    from stages.data.images import Checked
    from stages.search.retriever import Query, Result, Retriever

BATCH = 32  # queries that the model embeds at once
NAME_LENGTH = 60  # of a saved picture's file name


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one search; returns the exit code: 0 found or nothing found, 2 bad input, 1 the store is damaged."""

    def answer() -> None:
        options = parse(sys.argv[1:] if arguments is None else arguments)  # prints --help, on stdout
        with quiet_stdout() as stdout:
            search(options, stdout)

    return exit_code(answer)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; see `--help`."""
    parser = Parser(prog="python pipeline/search.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="words to search for")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to search with")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="JSONL of queries with text, image, want, where")
    parser.add_argument("--where", action="append", default=[], metavar="COND", help="price<20; all have to hold")
    parser.add_argument(
        "--backend", default="", metavar="NAME", help="exact, lance or faiss instead of the index's own"
    )
    parser.add_argument("--want", metavar="KIND", help="text, image or image,text; left out: pictures where possible")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="number of results (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="write the found pictures to DIR, by rank")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="which run's index, and store=…")
    return parser.parse_mixed(arguments)


@dataclass(frozen=True)
class Asked:
    """One query as far as it can be checked without the index."""

    text: str | None
    image: "Checked | None"
    want: str | None
    where: "dict[str, Any] | Sequence[str]"


def search(options: argparse.Namespace, answer: TextIO) -> None:
    """Checks everything that needs no model, then searches and prints."""
    asked = read_queries(options) if options.queries else [read_query(options)]
    place, wanted = read_overrides(options.overrides)
    store = open_store(place, wanted.pop("store_endpoint", ""))
    keys, student = find_keys(store, place, wanted), wanted.get("student.model", "")
    retriever, index = open_retriever(store, keys, options.backend, student)
    queries = [ask(retriever, one, f"{options.queries}:{number}" if options.queries else "") for number, one in asked]
    found = [result for part in batched(queries) for result in retriever.search_many(part, options.k)]
    if options.save_images:
        for number, results in enumerate(found, start=1):
            save_images(retriever, results, options.save_images / (f"{number:03d}" if options.queries else ""))
    if options.json:
        answers = [to_json(*one, index) for one in zip(queries, found, strict=True)]
        print(json.dumps({"answers": answers} if options.queries else answers[0], ensure_ascii=False), file=answer)
        return
    for query, results in zip(queries, found, strict=True):
        print_table(query, results, answer)


def read_query(options: argparse.Namespace) -> tuple[int, Asked]:
    """The one query of the command line."""
    from stages.data.images import Limits
    from stages.search.retriever import check_image, check_query

    text = check_query(options.text, options.want, options.k, options.image is not None)
    image = check_image(read_image(options.image), str(options.image), Limits()) if options.image else None
    return 0, Asked(text, image, options.want, options.where)


def read_queries(options: argparse.Namespace) -> list[tuple[int, Asked]]:
    """The queries of a file with their line numbers. Raises InputError naming the first bad line."""
    if options.text is not None or options.image is not None or options.want or options.where:
        raise InputError("--queries has its own text, image, want and where; leave these options out")
    try:
        lines = options.queries.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"--queries {options.queries} can't be read: {error.strerror}; give a JSONL file") from None
    asked = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                asked.append((number, parse_query(line, options)))
            except InputError as error:
                raise InputError(f"{options.queries}:{number}: {error}") from None
    if not asked:
        raise InputError(f"--queries {options.queries} holds no query; write one JSON object in each line")
    return asked


def parse_query(line: bytes, options: argparse.Namespace) -> Asked:
    """The query in one line of a file."""
    from stages.data.images import ImageRejected, Limits, load
    from stages.search.retriever import check_query

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError('a query is an object, such as {"text": "a red circle"}')
    if unknown := sorted(set(fields) - {"text", "image", "want", "where"}):
        raise InputError(f"unknown key '{unknown[0]}'; known: text, image, want, where")
    for name, kind in (("text", str), ("image", str), ("want", str), ("where", dict)):
        if not isinstance(fields.get(name), kind | None):
            raise InputError(f"{name} must be {'an object' if kind is dict else 'a text'}, not {fields[name]!r}")
    text = check_query(fields.get("text"), fields.get("want"), options.k, bool(fields.get("image")))
    try:
        image = load(options.queries.parent, fields["image"], Limits()) if fields.get("image") else None
    except ImageRejected as error:
        raise InputError(f"the image can't be used: {error}") from None
    return Asked(text, image, fields.get("want"), fields.get("where") or {})


def open_retriever(
    store: Store, keys: dict[str, str], backend: str = "", student: str = ""
) -> "tuple[Retriever, str]":
    """The retriever over a run's index, and the index's key; `keys` are of `find_keys`, `student` is a directory."""
    from pipeline.tracking.students import student_of
    from stages.search.backends import read_card
    from stages.search.retriever import Retriever

    index = store.artifact("index", keys["index"])
    made_from = [store.artifact(stage, keys[stage]) for stage in ("ingest", "train") if stage in keys]
    model = student_of(store, read_card(index), student)
    return Retriever.load(index, *made_from, backend=backend, student=model), index.key


def ask(retriever: "Retriever", asked: Asked, where: str) -> "Query":
    """The query as the index can answer it. Raises InputError, naming the line `where` of a file of queries."""
    from stages.search.filters import parse_where

    try:
        told = asked.where if isinstance(asked.where, dict) else parse_where(asked.where, retriever.card)
        return retriever.ask(asked.text, asked.image, asked.want, told)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def batched(queries: "Sequence[Query]") -> "Iterator[Sequence[Query]]":
    """The queries in batches that the model takes at once."""
    for start in range(0, len(queries), BATCH):
        yield queries[start : start + BATCH]


@contextmanager
def quiet_stdout() -> Iterator[TextIO]:
    """Gives the real stdout and sends whatever libraries print there to stderr."""
    real = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield real
    finally:
        sys.stdout = real


def read_image(path: Path) -> bytes:
    """The bytes of a picture file. Raises InputError where it can't be read or is too large to be one."""
    from stages.data.images import Limits

    try:
        if not path.is_file():
            raise InputError(f"--image {path} is not a file; give the path of a picture")
        if path.stat().st_size > Limits().max_bytes:
            raise InputError(f"--image {path} has more than {Limits().max_bytes:,} bytes; give a smaller picture")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--image {path} can't be read: {reason}; give a readable picture file") from None


def read_overrides(overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The store's place, and {dotted key: value} that a run's configuration has to agree with."""
    config, settings = read_config("demo", overrides)
    set_here = [path for path, origin in settings.origins.items() if origin.startswith("override ")]
    wanted = {path: get_value(settings.values, path.split(".")) for path in set_here if path != "tracking_uri"}
    if wanted.get("student.model"):
        from pipeline.tracking.students import find_student

        found = find_student(wanted["student.model"], config.tracking_uri, config.store_endpoint)
        wanted["student.model"] = str(found)
    wanted.pop("store", None)
    return config.store, wanted


def find_keys(store: Store, place: str, wanted: dict[str, Any]) -> dict[str, str]:
    """{stage: key} of the newest run that agrees with `wanted` and whose index is committed."""
    committed = store.manifests().get("index", {})
    told = {name: value for name, value in wanted.items() if name != "student.model" or not value}
    for run in sorted(store.runs(), key=lambda run: bool(run.get("grid"))):  # cells of a grid come last
        keys = {name: stage["key"] for name, stage in run["stages"].items()}
        if keys.get("index") in committed and agrees(run["config"], told) and made_by(store, keys["index"], wanted):
            return keys
    chosen = [f"{name}={value}" for name, value in wanted.items()]
    told = " ".join(chosen)
    chosen += [f"store={place}"] if place != Config().store else []
    command = shlex.join(["python", "pipeline/run.py", *chosen])
    raise InputError(f"no index in {place}{f' for {told}' if told else ''}: run `{command}` first")


def agrees(config: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a run's configuration has every wanted value."""
    return all(get_value(config, path.split(".")) == value for path, value in wanted.items())


def made_by(store: Store, index: str, wanted: dict[str, Any]) -> bool:
    """Whether the wanted student made the index of a corpus: told by its weights, wherever they lie today."""
    from stages.model.identity import identify

    if not wanted.get("student.model"):
        return True
    card = store.artifact("index", index).read_json("retriever.json")
    return card.get("student", {}).get("identity") == identify(Path(wanted["student.model"]))


def to_json(query: "Query", results: Sequence["Result"], index: str) -> dict[str, Any]:
    """The one object that `--json` prints."""
    return {"results": [result.to_json() for result in results], "query": query.to_json(), "index": index}


def print_table(query: "Query", results: Sequence["Result"], answer: TextIO) -> None:
    """Ranked rows for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipeline.terminal import printable

    console = Console(file=answer)
    if not results:
        filtered = query.filter.conditions or query.filter.datasets
        console.print(f"nothing found: {'no candidate meets the conditions' if filtered else 'the index holds none'}")
        return
    told = f"wanted: {query.want or 'anything'}; instruction: {query.instruction or 'none'}"
    table = Table(caption=escape(printable(told)), caption_justify="left")
    others = ["others"] if any(one.metadata for one in results) else []
    for name in ("rank", "score", "id", "modality", "text", "image", *others):
        table.add_column(name, justify="right" if name in ("rank", "score") else "left", overflow="fold")
    for rank, one in enumerate(results, start=1):
        cells = [one.id, one.modality, one.text or "", one.image or "", *(facts(one) for _ in others)]
        table.add_row(str(rank), f"{one.score:.4f}", *(escape(printable(cell)) for cell in cells))
    console.print(table)


def facts(result: "Result") -> str:
    """The other columns of a corpus of one's own, one in each line."""
    told = (result.metadata or {}).items()
    return "\n".join(
        f"{name}: {one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)}" for name, one in told
    )


def save_images(retriever: "Retriever", results: Sequence["Result"], directory: Path) -> None:
    """Writes each result's picture as `01_<id>.jpg`, so that a person can look."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for rank, one in enumerate(results, start=1):
            if one.image:
                data, kind = retriever.picture(one.image)
                name = "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in one.id)[:NAME_LENGTH]
                (directory / f"{rank:02d}_{name}.{'jpg' if kind == 'jpeg' else kind}").write_bytes(data)
    except OSError as error:
        raise InputError(
            f"--save-images {directory}: {error.strerror}; give a directory that can be written"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
