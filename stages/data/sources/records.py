"""Records in a user's own files: JSONL, CSV, TSV, texts, or simply a folder of pictures, all read as
chunks of JSON lines.

JSONL is read where it lies, be it in a bucket. A table, a text or the list of a folder is first written out as JSON
lines, row by row, so that everything behind this module knows one format, can cut it into chunks, and can name the
file and the line of a bad record.
"""

import hashlib
import json
import os
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from stages.contract.context import InputError
from stages.data.modalities import modality_of
from stages.data.sources.changes import MOST, Seen, stat_below
from stages.data.sources.chunks import SourceFile
from stages.data.sources.columns import advice, beside_pictures, renamed
from stages.data.sources.delimited import LINE, TABLES, write_table
from stages.data.sources.fields import BadField, normalise, parse
from stages.data.sources.folders import CLOSED, is_named, list_pictures, notes, sort_files, walk_named
from stages.data.sources.remote import ADVICE, LINKED, Place, RemotePath, walk

LINES = (".jsonl", ".ndjson")
RECORDS = (*LINES, *TABLES)
SHOWN = 12  # columns in an error
TEXTS = (".txt",)  # a text in each line
TABLE_LINE = re.compile(rb'"\\u0000line": (\d{1,18})\}\s*$')  # as json writes it, always last


@dataclass(frozen=True)
class Records:
    """Where records are read from: JSON lines, each file with its `home`, and the root that pictures may not leave."""

    root: Place
    sources: tuple[SourceFile, ...]
    names: tuple[str, ...]
    """What a person calls each source, in the same order."""
    notes: tuple[str, ...] = ()
    """Lines about files that are not read."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What columns are called here, see `columns.names_of`; rows of tables were written out under these names."""
    setting: str = ""
    """The setting that can tell of other columns, for errors."""
    listed: bool = False
    """Whether the pictures of the folder are records themselves."""

    def name(self, source: SourceFile) -> str:
        """What a person calls a source."""
        return self.names[self.sources.index(source)]

    def read(self, source: SourceFile, line: bytes) -> dict[str, Any]:
        """The record of one line, its columns under their names here. Raises BadField."""
        fields = parse(line)
        if fields.pop(LINE, None) is not None:  # written out here, under these names
            return fields
        fields = renamed(fields, beside_pictures(self.name(source), self.columns))
        if self.setting and fields and not {"text", "image"} & set(fields):
            has = f"the row has neither text nor image, it has {', '.join(list(fields)[:SHOWN])}"
            raise BadField("empty", f"{has}; {advice(list(fields), self.setting)}")
        return fields


def find(path: Place, setting: str, bare: bool) -> list[Place]:
    """The files of records at `path`, a file or a directory of them; none where it is a folder of pictures.

    Texts are taken from a folder that holds no other records.

    Args:
        path: what the user gave.
        setting: the name of the setting, for errors.
        bare: whether pictures without records will do, and texts, each by itself or both in one folder.

    Raises:
        InputError: nothing there can be read.
    """
    kinds = [*RECORDS, *(TEXTS if bare else ())]
    if path.is_file():
        if path.suffix.lower() not in kinds:
            raise InputError(f"{setting}={path} is not read by its name; give a file that ends in {' '.join(kinds)}")
        return [path]
    if not path.is_dir():
        mend = ADVICE if isinstance(path, RemotePath) else "give a file or a directory"
        raise InputError(f"{setting}={path} is not there; {mend}")
    files = _of_kinds(path, RECORDS) or (_of_kinds(path, TEXTS) if bare else [])
    if not files and not (bare and any(next(list_pictures(path, look), None) for look in (False, True))):
        wanted = "file of records" + (" and no picture" if bare else "")
        there = {kind for _, kind in sort_files(path, look=False)} if bare else set()
        raise InputError(f"{setting}={path} holds no {wanted}; {_mend(path, there, kinds)}")
    return files


def _mend(path: Place, there: Container[str], kinds: list[str]) -> str:
    """What helps where a folder has nothing to read but what is `there`, see `sort_files`."""
    if "link" in there:
        return f"its folders are links: {LINKED.format(path)}"
    if "closed" in there:
        return f"its folders may not be read: {CLOSED.format(path)}"
    return f"give files in {' '.join(kinds)}"


def lay_out(
    path: Place,
    files: list[Place],
    work: Path,
    columns: Mapping[str, str] | None = None,
    of_tables: Mapping[str, str] | None = None,
    setting: str = "",
) -> Records:
    """Records ready to be cut into chunks; what is no JSON yet is written below `work`.

    Pictures of a folder belong to it where records say which; where there are none, all do.

    Args:
        path: what the user gave.
        files: of `find`.
        work: a directory.
        columns: what columns are called here, see `columns.names_of`.
        of_tables: the same for those of tables, where these are others.
        setting: what can tell of other columns; empty where none can.
    """
    root = path if path.is_dir() else path.parent
    work.mkdir(parents=True, exist_ok=True)
    columns, as_lines, names = columns or {}, [], [file.name for file in files]
    for number, file in enumerate(files):
        target, kind = work / f"{number:04d}.jsonl", file.suffix.lower()
        if kind in TABLES:
            as_lines.append(write_table(file, target, beside_pictures(file.name, of_tables or columns)))
        else:
            as_lines.append(write_texts(file, target) if kind in TEXTS else file)
    if path.is_file() or any(file.suffix.lower() in RECORDS for file in files):
        return Records(root, tuple(map(_source, as_lines)), tuple(names), (), columns, setting)
    target = work / "pictures.jsonl"
    told = write_folder(root, target, {file.name for file in files})
    sources = tuple(map(_source, [*as_lines, target]))
    return Records(root, sources, (*names, path.name), tuple(told), columns, setting, listed=True)


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


def fingerprint(path: Place, texts: bool = False) -> str:
    """A digest of (name, size, time of change or ETag) of the files of records at `path` and the pictures beside them.

    Only files called like pictures count where there are records, which may lie beside anything. No hidden folder is
    entered. Texts count where they are records too, see `find`. Of more than MOST pictures only their folders are
    looked at, as in `changes`; in a bucket the first MOST of them.
    """
    if isinstance(path, RemotePath):
        return _remote_fingerprint(path, texts)
    kinds = (*RECORDS, *(TEXTS if texts else ()))
    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.suffix.lower() in kinds]
    alone = not any(file.suffix.lower() in RECORDS for file in files)
    pictures = list(islice(list_pictures(root, look=alone), MOST + 1))
    many = len(pictures) > MOST
    names = [*sorted(file.name for file in files), *([] if many else pictures)]
    seen = [stat_below(root, f"/{name}") for name in names]
    if many:
        seen += _look_at_folders(root, beside=not alone)
    digest = hashlib.sha256()
    for name, size, time in seen:
        digest.update(f"{name[1:]}\0{size}\0{time}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _look_at_folders(root: Path, beside: bool) -> Iterator[Seen]:
    """(folder, its pictures, time of its last change); none of the root where anything may lie `beside` records."""
    for folder, count in walk_named(root):
        time = 0 if beside and folder == str(root) else os.stat(folder).st_mtime_ns
        yield f"/{os.path.relpath(folder, root)}", count, time


def _remote_fingerprint(path: RemotePath, texts: bool) -> str:
    """The same by one listing."""
    alone, kinds = path.is_file(), (*RECORDS, *(TEXTS if texts else ()))

    def counts(name: str) -> bool:
        records = name == path.name if alone else "/" not in name and name.lower().endswith(kinds)
        return records or is_named(name)

    root = path.parent if alone else path
    found = list(islice((one for one in walk(root) if counts(one[0])), MOST + 1))
    if len(found) > MOST:  # those are the first by name, so records are listed once more
        found = [*found[:MOST], *(one for one in walk(root, deep=False) if counts(one[0]) and not is_named(one[0]))]
    return hashlib.sha256(repr(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:16]


def write_folder(root: Place, target: Path, read: Container[str] = ()) -> list[str]:
    """One record for each picture, its path being its id; returns lines about files other than those `read`."""
    count, others = 0, []
    with target.open("w", encoding="utf-8") as file:
        for path, kind in sort_files(root, look=True):
            if kind == "picture":
                count += 1
                file.write(json.dumps({"id": path, "image": path, LINE: count}) + "\n")
            elif path not in read:
                others.append((path, kind))
    return notes(count, others, root)


def write_texts(source: Place, target: Path) -> Path:
    """One record for each line of a text that is not blank."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape") as file, target.open("w") as written:
        for number, line in enumerate(file, start=1):
            if line.strip():
                written.write(json.dumps({"text": line.strip(), LINE: number}) + "\n")
    return target


def source_line(line: bytes, number: int) -> int:
    """The line on which a person finds the record: of its table, else `number`; of lines that are no JSON too."""
    match = TABLE_LINE.search(line)
    return int(match[1]) if match else number


def is_row(line: bytes) -> bool:
    """Whether the record is a row of a table, whose values are all texts."""
    return TABLE_LINE.search(line) is not None


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


def check_cells(fields: dict[str, Any]) -> None:
    """Raises BadField for a row of a table with cells beside its columns, see `write_table`."""
    if "too many cells" in fields:
        said = "the row has more cells than the header names; quote cells that hold what separates cells"
        raise BadField("too many cells", said)


def id_of(fields: dict[str, Any], what: str) -> str | None:
    """The `id` of a record as text; None where it has none. Raises BadField."""
    value = fields.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadField("bad id", f"the id of {what} must be a text or a whole number, this is {value!r}")
    return str(value)
