"""Pairs and texts of WordNet, from lines as its files have them."""

from collections import Counter
from pathlib import Path

from tests.bench import wordnet
from tests.bench.few_labels import read

JACK = (
    "13795187 23 n 0a jack 0 doodly-squat 0 diddly-squat 0 diddlysquat 0 diddly-shit 0 diddlyshit 0 diddly 0 diddley 0"
    ' squat 0 shit 0 001 @ 13782456 n 0000 | a small worthless amount; "you don\'t know jack"  \n'
)
ABSTRACTION = "00002137 03 n 02 abstraction 0 abstract_entity 0 000 | a general concept; formed so  \n"
AFRAID = '00077645 00 a 01 afraid(p) 0 000 | filled with fear or apprehension; "afraid of snakes"  \n'


def test_a_line_has_a_definition_without_examples_and_its_first_words():
    assert wordnet.texts_of(JACK) == ("a small worthless amount", "jack, doodly-squat, diddly-squat, diddlysquat")
    assert wordnet.texts_of(ABSTRACTION) == ("a general concept; formed so", "abstraction, abstract entity")
    assert wordnet.texts_of(AFRAID) == ("filled with fear or apprehension", "afraid")


def write_dict(folder: Path) -> Path:
    """Twelve nouns, two of which say the same, an adjective and no verb, below a licence."""
    folder.mkdir()
    nouns = [f"{n:08d} 03 n 01 word{n} 0 000 | meaning {min(n, 10)}  \n" for n in range(12)]
    (folder / "data.noun").write_text("".join(["  1 This software is licensed\n", *nouns]))
    (folder / "data.adj").write_text(AFRAID)
    (folder / "data.verb").write_text("")
    return folder


def test_no_text_stands_twice_and_no_meaning_is_in_both_files(tmp_path: Path):
    source = write_dict(tmp_path / "dict")
    assert [name for name, *_ in wordnet.meanings(source)] == [*(f"n{n:08d}" for n in range(11)), "a00077645"]
    wordnet.draw(source, tmp_path, {"test": 2, "val": 1, "train": 4}, others=5)
    pairs, texts = (read(tmp_path / f"{name}.jsonl") for name in ("pairs", "texts"))
    assert Counter(row["split"] for row in pairs) == {"test": 2, "val": 1, "train": 4}
    assert Counter(row["id"][0] for row in texts) == {"d": 5, "w": 5}
    assert {row["id"][2:] for row in pairs}.isdisjoint(row["id"][2:] for row in texts)
    known = {name: (definition, words) for name, definition, words in wordnet.meanings(source)}
    assert all((one["query"]["text"], one["positives"][0]["text"]) == known[one["id"][2:]] for one in pairs)
    wordnet.draw(source, tmp_path / "again", {"test": 2, "val": 1, "train": 4}, others=5)
    assert (tmp_path / "again" / "pairs.jsonl").read_bytes() == (tmp_path / "pairs.jsonl").read_bytes()
