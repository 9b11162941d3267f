"""Files of JSON lines, cut at line ends into chunks that tasks read by seeking.

The files of a corpus are few and large, the tasks of a cluster many. A chunk knows the number of its first line, so
that a reject can name file:line.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from stages.data.sources.remote import Place

CHUNK_BYTES = 16 * 2**20
POSITION_BITS = 32


@dataclass(frozen=True)
class SourceFile:
    """One JSONL file. `path` is relative to the root or `home`; `pool` is set for candidates, the rest for queries."""

    path: str
    pool: str | None = None
    split: str | None = None
    dataset: str | None = None
    task_id: int | None = None
    qrels: str | None = None
    pools: tuple[str, ...] = ()
    """Pools that may be this query file's own, the likeliest first, the union last; `ingest` chooses."""
    home: Place | None = None
    """Where the file lies if not below the root, as what was written out on the way does; pictures are never there."""

    def below(self, root: Place) -> Place:
        """The file itself."""
        return (self.home or root) / self.path


@dataclass(frozen=True)
class FileChunk:
    """Whole lines of a file: `nbytes` from `offset`, the first being line `first_line` (counted from 1)."""

    source: SourceFile
    offset: int
    nbytes: int
    first_line: int


def file_chunks(root: Place, source: SourceFile, size: int = CHUNK_BYTES) -> Iterator[FileChunk]:
    """Cuts a file into chunks of about `size` bytes, at line ends. Reads the file once to count its lines."""
    offset, line = 0, 1
    with source.below(root).open("rb") as file:
        while block := file.read(size):
            if not block.endswith(b"\n"):
                block += file.readline()
            yield FileChunk(source, offset, len(block), line)
            offset += len(block)
            line += block.count(b"\n")


def lines(root: Place, chunk: FileChunk) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the lines of a chunk that are not blank."""
    with chunk.source.below(root).open("rb") as file:
        file.seek(chunk.offset)
        block = file.read(chunk.nbytes)
    for number, line in enumerate(block.split(b"\n"), start=chunk.first_line):
        if line.strip():
            yield number, line


def position(number: int, place: int) -> int:
    """Where row `place` of chunk `number` stands in the order of the source, unique over all its files."""
    return (number << POSITION_BITS) + place
