"""What the documents name is there: files that they link to, and places in this repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
PLACE = re.compile(r"`((?:pipeline|stages|tests|cluster|mlflow|docs)/[\w./-]*)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_every_named_place_is_there(document):
    text = document.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [place for place in PLACE.findall(text) if not (ROOT / place).exists()]
    assert missing == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_lists_every_room():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    rooms = {path.parent.name for top in ("pipeline", "stages") for path in (ROOT / top).glob("*/__init__.py")}
    assert {room for room in rooms if f"\n  {room}/" not in tree} == set()
