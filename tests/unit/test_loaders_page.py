"""docs/loaders.md has every backbone, loader and kind of input, and every loader agrees; `make loaders` writes it."""

from pathlib import Path

from stages.export.loaders import LOADERS, VLLM, Sample
from stages.export.parity import MINIMUM_COSINE, samples
from tests.loaders import BACKBONES, COARSE, COLUMNS, HEAD, KINDS, cells, kind_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loaders.md"


def table() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_begins_with_its_own_words():
    assert PAGE.read_text(encoding="utf-8").startswith(HEAD.partition("{")[0])


def test_the_page_says_that_every_loader_of_every_backbone_agrees_on_every_kind_of_input():
    head, _, *rows = table()
    assert head == list(COLUMNS)
    measured = {(name, loader): cells for name, loader, *cells in rows if not cells[0].startswith("not run: ")}
    for name in BACKBONES:
        for loader in ("puma", "transformers AutoModel", "MLflow pyfunc", *LOADERS):
            loader, least = COARSE[name] if loader == VLLM and name in COARSE else (loader, MINIMUM_COSINE)
            assert min(map(float, measured.pop((f"`{name}`", loader)))) >= least
    assert not measured


def test_a_cell_is_the_least_cosine_of_its_kind():
    assert {kind_of(sample) for sample in samples()} == set(KINDS)
    inputs = [
        Sample(None, "a", None),
        Sample("Find it.", "x" * 999, None),
        Sample(None, " ", b"1"),
        Sample(None, "a", b"1"),
    ]
    cosines = [0.9, 0.8, 1.0000001, 0.6, 0.7, 0.5]
    assert list(cells(cosines, [*inputs, *inputs[:2]])) == ["0.700000", "0.500000", "1.000000", "0.600000"]
