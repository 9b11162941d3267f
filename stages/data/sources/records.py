"""Records in a user's own files: JSONL, CSV, TSV, texts, or simply a folder of pictures, all read as
chunks of JSON lines.

JSONL is read where it lies, be it in a bucket. A table, a text or the list of a folder is first written out as JSON
lines, row by row, so that everything behind this module knows one format, can cut it into chunks, and can name the
file and the line of a bad record.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stages.contract.context import InputError
from stages.data.modalities import modality_of
from stages.data.sources.changes import MOST, Seen, look
from stages.data.sources.chunks import SourceFile
from stages.data.sources.fields import BadField, normalise, parse
from stages.data.sources.remote import ADVICE, Place, RemotePath, walk

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
RECORDS = (*LINES, *TABLES)
TEXTS = (".txt",)  # a text in each line
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
LINE = "\0line"  # where a record of a table or a text stood; no column can be called so
TABLE_LINE = re.compile(rb'"\\u0000line": (\d{1,18})\}\s*$')  # as json writes it, always last
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
LONGEST = 10_000_000  # characters of one cell


@dataclass(frozen=True)
class Records:
    """Where records are read from: JSON lines, each file with its `home`, and the root that pictures may not leave."""

    root: Place
    sources: tuple[SourceFile, ...]
    names: tuple[str, ...]
    """What a person calls each source, in the same order."""

    def name(self, source: SourceFile) -> str:
        """What a person calls a source."""
        return self.names[self.sources.index(source)]


def find(path: Place, setting: str, pictures: bool, texts: bool = False) -> list[Place]:
    """The files of records at `path`, a file or a directory of them; none where it is a folder of pictures.

    Texts are taken from a folder that holds no other records.

    Args:
        path: what the user gave.
        setting: the name of the setting, for errors.
        pictures: whether a folder of pictures will do.
        texts: whether text files will do, beside pictures too.

    Raises:
        InputError: nothing there can be read.
    """
    kinds = [*RECORDS, *(TEXTS if texts else ())]
    if path.is_file():
        if path.suffix.lower() not in kinds:
            raise InputError(f"{setting}={path} is not read by its name; give a file that ends in {' '.join(kinds)}")
        return [path]
    if not path.is_dir():
        advice = ADVICE if isinstance(path, RemotePath) else "give a file or a directory"
        raise InputError(f"{setting}={path} is not there; {advice}")
    files = _of_kinds(path, RECORDS) or (_of_kinds(path, TEXTS) if texts else [])
    if not files and not (pictures and next(list_pictures(path), None)):
        wanted = "a file of records" + (" and no picture" if pictures else "")
        raise InputError(f"{setting}={path} holds no {wanted.removeprefix('a ')}; give files in {' '.join(kinds)}")
    return files


def lay_out(path: Place, files: list[Place], work: Path, columns: Mapping[str, str] | None = None) -> Records:
    """Records ready to be cut into chunks; what is no JSON yet is written below `work`.

    Pictures of a folder belong to it where records say which; where there are none, all do.

    Args:
        path: what the user gave.
        files: of `find`.
        work: a directory.
        columns: what columns of a table are called here, by their names in it.
    """
    root = path if path.is_dir() else path.parent
    work.mkdir(parents=True, exist_ok=True)
    as_lines, names = [], [file.name for file in files]
    for number, file in enumerate(files):
        target, kind = work / f"{number:04d}.jsonl", file.suffix.lower()
        if kind in TABLES:
            as_lines.append(write_table(file, target, columns or {}))
        else:
            as_lines.append(write_texts(file, target) if kind in TEXTS else file)
    if path.is_dir() and not any(file.suffix.lower() in RECORDS for file in files):
        as_lines.append(write_folder(root, work / "pictures.jsonl"))
        names.append(path.name)
    return Records(root, tuple(map(_source, as_lines)), tuple(names))


def _of_kinds(folder: Place, kinds: tuple[str, ...]) -> list[Place]:
    """The files of a folder by the ends of their names, sorted; hidden texts are left out, as hidden pictures are."""
    found = (one for one in folder.glob("*") if one.suffix.lower() in kinds and _is_file(one))
    return sorted(one for one in found if kinds != TEXTS or not one.name.startswith("."))


def _is_file(found: Place) -> bool:
    """Whether what was found in a folder is a file; a bucket lists nothing else, and asking takes a request."""
    return isinstance(found, RemotePath) or found.is_file()


def _source(file: Place) -> SourceFile:
    """A file of JSON lines by where it lies, whatever the root of the pictures is."""
    return SourceFile(file.name, home=file.parent if isinstance(file, RemotePath) else file.parent.resolve())


def list_pictures(root: Place) -> Iterator[str]:
    """Paths below `root` of files named like pictures, sorted; linked and hidden folders are not entered.

    A bucket's own order is kept, in which it lists page by page: to know of one picture takes one page.
    Hidden files are left out too: macOS puts `._photo.jpg` beside each picture that it copies.
    """
    return list_local(root) if isinstance(root, Path) else (name for name, *_ in walk(root) if _is_picture(name))


def _is_picture(path: str) -> bool:
    """Whether an object is named like a picture and neither it nor a folder above is hidden."""
    return path.lower().endswith(PICTURES) and not any(part.startswith(".") for part in path.split("/"))


def list_local(root: Path) -> Iterator[str]:
    """`list_pictures` of a directory."""
    for folder, names in walk_pictures(root):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root)


def walk_pictures(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its pictures), both sorted."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder, sorted(name for name in names if name.lower().endswith(PICTURES) and not name.startswith("."))


def fingerprint(path: Place, texts: bool = False) -> str:
    """A digest of (name, size, time of change or ETag) of the files of records at `path` and the pictures beside them.

    Only files named like pictures count, and no hidden folder is entered: a file of records may lie beside anything.
    Texts count where they are records too, see `find`. Of more than MOST pictures only their folders are looked at, as
    in `changes`; in a bucket the first MOST of them.
    """
    if isinstance(path, RemotePath):
        return _remote_fingerprint(path, texts)
    kinds = (*RECORDS, *(TEXTS if texts else ()))
    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.suffix.lower() in kinds]
    pictures = list(islice(list_pictures(root), MOST + 1))
    many = len(pictures) > MOST
    seen = [look(root, f"/{name}") for name in (*sorted(file.name for file in files), *([] if many else pictures))]
    if many:
        seen += _look_at_folders(root, beside=bool(files))
    digest = hashlib.sha256()
    for name, size, time in seen:
        digest.update(f"{name[1:]}\0{size}\0{time}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _look_at_folders(root: Path, beside: bool) -> Iterator[Seen]:
    """(folder, its pictures, time of its last change); none of the root where anything may lie `beside` records."""
    for folder, names in walk_pictures(root):
        time = 0 if beside and folder == str(root) else os.stat(folder).st_mtime_ns
        yield f"/{os.path.relpath(folder, root)}", len(names), time


def _remote_fingerprint(path: RemotePath, texts: bool) -> str:
    """The same by one listing."""
    alone, kinds = path.is_file(), (*RECORDS, *(TEXTS if texts else ()))

    def counts(name: str) -> bool:
        records = name == path.name if alone else "/" not in name and name.lower().endswith(kinds)
        return records or _is_picture(name)

    root = path.parent if alone else path
    found = list(islice((one for one in walk(root) if counts(one[0])), MOST + 1))
    if len(found) > MOST:  # those are the first by name, so records are listed once more
        found = [*found[:MOST], *(one for one in walk(root, deep=False) if counts(one[0]) and not _is_picture(one[0]))]
    return hashlib.sha256(repr(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:16]


def write_folder(root: Place, target: Path) -> Path:
    """One record for each picture, its path being its id."""
    with target.open("w", encoding="utf-8") as file:
        for number, path in enumerate(list_pictures(root), start=1):
            file.write(json.dumps({"id": path, "image": path, LINE: number}) + "\n")
    return target


def write_texts(source: Place, target: Path) -> Path:
    """One record for each line of a text that is not blank."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape") as file, target.open("w") as written:
        for number, line in enumerate(file, start=1):
            if line.strip():
                written.write(json.dumps({"text": line.strip(), LINE: number}) + "\n")
    return target


def read_header(source: Place) -> list[str]:
    """The names of a table's columns. Raises InputError where it has none."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return _header(csv.DictReader(file, delimiter=TABLES[source.suffix.lower()], strict=True), source, {})


def _header(reader: csv.DictReader, source: Place, columns: Mapping[str, str]) -> list[str]:
    names = [columns.get(name, name) for name in reader.fieldnames or ()]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{source} needs a first line that names each column once")
    return names


def write_table(source: Place, target: Path, columns: Mapping[str, str]) -> Path:
    """One record for each row of a CSV or TSV with a header; empty cells are left out, numbers and truths are read.

    `columns` are other names for some of its columns.

    Raises:
        InputError: the file has no header, or its quotes can't be followed.
    """
    csv.field_size_limit(LONGEST)
    separator = TABLES[source.suffix.lower()]
    # Bytes that are no UTF-8 become signs that no JSON text may hold: their row is rejected, not the file.
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, target.open("w") as written:
        reader = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            reader.fieldnames = _header(reader, source, columns)
            for row in reader:
                extra = {"too many cells": True} if row.pop(None, None) else {}
                cells = {name: cell(name, text) for name, text in row.items() if text}
                written.write(json.dumps({**cells, **extra, LINE: reader.line_num}) + "\n")
        except csv.Error as error:
            raise InputError(f"{source}:{reader.line_num}: {error}; correct the quotes of the row") from None
    return target


def cell(name: str, text: str) -> Any:
    """The value of a table's cell: a number or a truth where it is written as one, except in ids, texts and paths."""
    if re.fullmatch(r"(\w+_)?(id|text|image|split|task)", name):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return json.loads(text) if NUMBER.fullmatch(text) else text


def read_line(line: bytes) -> dict[str, Any]:
    """The record of one line. Raises BadField."""
    fields = parse(line)
    fields.pop(LINE, None)
    return fields


def source_line(line: bytes, number: int) -> int:
    """The line on which a person finds the record: of its table, else `number`; of lines that are no JSON too."""
    match = TABLE_LINE.search(line)
    return int(match[1]) if match else number


def content_of(fields: Any, what: str) -> tuple[str, str | None, str | None]:
    """(modality, normalised text, image path) of a record with `text`, `image` or both. Raises BadField."""
    if not isinstance(fields, dict):
        raise BadField("bad field", f"{what} must be an object with text or image, this is {type(fields).__name__}")
    for name in ("text", "image"):
        if not isinstance(fields.get(name), str | None):
            raise BadField("bad field", f"{name} of {what} must be a string, this is {fields[name]!r}")
    text, image = normalise(fields.get("text")), fields.get("image") or None
    if text is None and image is None:
        raise BadField("empty", f"{what} has neither text nor image")
    return modality_of(text, image), text, image


def id_of(fields: dict[str, Any], what: str) -> str | None:
    """The `id` of a record as text; None where it has none. Raises BadField."""
    value = fields.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadField("bad id", f"the id of {what} must be a text or a whole number, this is {value!r}")
    return str(value)
