"""What the documents name is there: files that they link to, and places in this repository."""

import re
from pathlib import Path

import pytest

from tests.nodes import world
from tests.nodes.outcomes import HEAD, command
from tests.nodes.runs import RUNS

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


@pytest.mark.parametrize("document", ["README.md", "docs/cluster.md"])
def test_the_four_lines_for_a_cluster_are_what_the_test_of_nodes_runs(document):
    """`tests/nodes` adds where a node is on its one machine, and how large."""
    text = (ROOT / document).read_text(encoding="utf-8")
    block = next(part for part in text.split("```") if "ray start --address HEAD" in part)
    lines = [
        line.partition("#")[0].split() for line in block.replace("HEAD", world.address_of(0)).strip().splitlines()
    ]
    assert [word.partition("=")[0] for word in lines[0][1:]] == list(world.AUTHENTICATION)
    for node in (0, 1):
        (ours,) = [line for line in lines[1:3] if ("--head" in line) == (node == 0)]
        assert ours[:2] == ["ray", "start"] and set(ours[2:]) <= set(world.ray_start(node, cpus=3).split())
    assert lines[3] == ["ray", *world.job(*world.program("demo", bucket="BUCKET", mlflow="MLFLOW"))]


def test_the_table_of_nodes_has_a_row_for_each_of_their_runs():
    rows = [line.split(" | ") for line in (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8").splitlines()]
    shown = [(row[0].removeprefix("| "), row[1]) for row in rows if len(row) == len(HEAD)]
    assert shown[2:] == [(run.name, command(run)) for run in RUNS]
