"""Search an index from the command line: text, a picture or both in, ranked candidates out.

    python pipeline/search.py --text "two red circles"
    python pipeline/search.py --image photo.jpg --want text --json
    python pipeline/search.py --text "the same in blue" --image photo.jpg --save-images found store=.puma/store

The index is that of the newest pipeline run whose configuration agrees with every key=value given. No Ray is started,
and nothing heavy is imported before the arguments are known to be good.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if __package__ in (None, ""):  # started by its path: the repository, not this directory, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.artifacts import Store, open_store
from pipeline.config import Config, check_keys, get_value
from pipeline.settings import read_settings
from pipeline.values import walk_fields
from stages.context import InputError, StageError

if TYPE_CHECKING:
    from stages.search.retriever import Query, Result, Retriever

NAME_LENGTH = 60  # of a saved picture's file name


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; python pipeline/search.py --help shows all options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one search; returns the exit code: 0 found or nothing found, 2 bad input, 1 the store is damaged."""
    try:
        with quiet_stdout() as answer:
            search(parse(arguments), answer)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; see `--help`."""
    parser = Parser(prog="python pipeline/search.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="words to search for")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to search with")
    parser.add_argument("--want", metavar="KIND", help="text, image or image,text; left out: pictures where possible")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="number of results (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="write the found pictures to DIR, by rank")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="which run's index, and store=…")
    return parser.parse_intermixed_args(arguments)


def search(options: argparse.Namespace, answer: TextIO) -> None:
    """Checks everything that needs no model, then searches and prints."""
    from stages.data.images import Limits
    from stages.search.retriever import Retriever, check_image, check_query

    text = check_query(options.text, options.want, options.k, options.image is not None)
    image = check_image(read_image(options.image), str(options.image), Limits()) if options.image else None
    place, wanted = read_overrides(options.overrides)
    store = open_store(place, wanted.pop("store_endpoint", ""))
    keys = find_keys(store, place, wanted)
    index, ingest, train = (store.artifact(stage, keys[stage]) for stage in ("index", "ingest", "train"))
    retriever = Retriever.load(index, ingest, train)
    query = retriever.ask(text, image, options.want)
    results = retriever.find(query, options.k)
    if options.save_images:
        save_images(retriever, results, options.save_images)
    if options.json:
        print(json.dumps(to_json(query, results, index.key), ensure_ascii=False), file=answer)
    else:
        print_table(query, results, answer)


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
    fields = dict(walk_fields(Config))
    is_text = {path for path, field in fields.items() if field.annotation is str}
    settings = read_settings("demo", overrides, is_text.__contains__)
    check_keys(settings, fields)
    set_here = [path for path, origin in settings.origins.items() if origin.startswith("override ")]
    wanted = {path: get_value(settings.values, path) for path in set_here if path != "tracking_uri"}
    return wanted.pop("store", Config().store), wanted


def find_keys(store: Store, place: str, wanted: dict[str, Any]) -> dict[str, str]:
    """{stage: key} of the newest run that agrees with `wanted` and whose index is committed."""
    committed = store.manifests().get("index", {})
    for run in sorted(store.runs(), key=lambda run: bool(run.get("grid"))):  # cells of a grid come last
        keys = {name: stage["key"] for name, stage in run["stages"].items()}
        if keys.get("index") in committed and agrees(run["config"], wanted):
            return keys
    told = " ".join(f"{name}={value}" for name, value in wanted.items())
    command = f"python pipeline/run.py {told}".strip()
    raise InputError(f"no index in {place}{f' for {told}' if told else ''}: run `{command}` first")


def agrees(config: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a run's configuration has every wanted value."""
    return all(get_value(config, path) == value for path, value in wanted.items())


def to_json(query: "Query", results: Sequence["Result"], index: str) -> dict[str, Any]:
    """The one object that `--json` prints."""
    return {"results": [result.to_json() for result in results], "query": query.to_json(), "index": index}


def print_table(query: "Query", results: Sequence["Result"], answer: TextIO) -> None:
    """Ranked rows for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=answer)
    if not results:
        console.print("nothing found: the index holds no candidate")
        return
    told = f"wanted: {query.want or 'anything'}; instruction: {query.instruction or 'none'}"
    table = Table(caption=escape(told), caption_justify="left")
    for name in ("rank", "score", "id", "modality", "text", "image"):
        table.add_column(name, justify="right" if name in ("rank", "score") else "left", overflow="fold")
    for rank, one in enumerate(results, start=1):
        cells = (one.id, one.modality, one.text or "", one.image or "")
        table.add_row(str(rank), f"{one.score:.4f}", *map(escape, cells))
    console.print(table)


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
