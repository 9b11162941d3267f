"""The command line of the benchmarks: what it says of itself, and what it refuses before it measures anything."""

import pytest

from tests.bench import bill, scale, serve
from tests.bench.__main__ import BENCHMARKS, main


def told(capsys, *arguments: str) -> str:
    """What a command says that is asked for help, on one line."""
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_names_every_benchmark(capsys):
    page = told(capsys)
    assert all(f" {name} " in page for name in (*BENCHMARKS, "all", "scale", "bill"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_what_it_compares(capsys, name):
    assert " ".join(BENCHMARKS[name].__doc__.split()) in told(capsys, name)


def test_scale_says_where_it_works_and_that_it_takes_long(capsys):
    page = told(capsys, "scale")
    assert "default .puma/scale" in page and "starts a Ray" in page and "18 minutes" in page and "4 GB" in page


def test_help_of_the_module_that_writes_a_page_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(serve, "write_page", lambda: pytest.fail("it measures"))
    with pytest.raises(SystemExit, match="0"):
        serve.main(["--help"])
    assert "writes them to docs/performance.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(
            (["scale", "--sizes", size], f"--sizes {size}: give numbers")
            for size in ("0", "10k,0k", "ten", "", "1,,2")
        ),
        (["scale", "--sizes=-5"], "--sizes -5: give numbers of candidates above 0"),
        *(([name, "--output", "/nope/x.md"], "there is no directory /nope") for name in ("scale", "bill", "embed")),
    ],
)
def test_what_could_only_fail_is_refused_in_one_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(scale, "measure", lambda work, size: pytest.fail("it measures"))
    monkeypatch.setattr(bill, "section", lambda: pytest.fail("it counts"))
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and said in found.err and found.err.count("\n") == 1
