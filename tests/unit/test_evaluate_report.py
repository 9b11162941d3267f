"""The report shows what metrics.json holds, in a terminal's width, with any number of sets."""

import io

import pytest

from stages.evaluation.comparison import SMALLER, labels, measure_rows, smaller_line, smaller_rows, stored_line
from stages.evaluation.markdown_table import markdown_table
from stages.evaluation.measures import MEASURES
from stages.evaluation.plots import draw_cost, draw_quality
from stages.evaluation.report import WIDTH, set_table, terminal_table

NAMES = [f"{dataset}_task{task}" for dataset in ("visualnews", "fashion200k") for task in (0, 3, 6, 7, 8)]


def metrics(names: list[str], student: float = 0.45, teacher: float = 0.5) -> dict:
    """Made-up metrics in the shape of metrics.json."""

    def scope(value: float) -> dict:
        task = {**dict.fromkeys(MEASURES, value), "label": "image+text→image+text", "queries": 2485}
        tasks = {name: {**task, "pool_size": 5_600_000, "chance hit@5": 0.05} for name in names}
        return {**dict.fromkeys(MEASURES, value), "tasks": tasks}

    def model(layers: int, value: float) -> dict:
        speed = {"latency_ms": {"median": 3.0 * layers, "p90": 4.0 * layers}, "queries_per_second": 900 / layers}
        size = {"layers": layers, "parameters": layers * 10**9, "dim": 1536}
        return {**size, **speed, "local": scope(value), "union": scope(value / 2)}

    chance = {"hit@5": 0.05, "tasks": {name: {"hit@5": 0.05} for name in names}}
    return {
        "student": model(12, student),
        "teacher": model(28, teacher),
        "asymmetric": {"local": scope(0.3), "union": scope(0.15)},
        "cut": {scope_: scope(value) for scope_, value in (("local", 0.2), ("union", 0.1))},
        "chance": {"local": chance, "union": chance},
        "kept": dict.fromkeys(("local hit@5", "union hit@5"), student / teacher if teacher else 0.0),
    }


@pytest.mark.parametrize("names", [NAMES[:1], NAMES])
def test_the_terminal_table_has_a_line_for_each_set_and_fits(names: list[str]) -> None:
    lines = terminal_table(metrics(names)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum("image+text→image+text" in line for line in lines) == len(names)
    mean = next(line for line in lines if "mean, local pools" in line)
    assert all(part in mean for part in ("0.050", "0.500", "0.450", "90%"))
    assert [line.split()[-1] for line in lines if "teacher's index, " in line] == ["0.300", "0.150"]
    assert any("layers" in line and "28" in line and "12" in line for line in lines)


def test_of_a_teacher_that_came_untrained_no_share_is_shown_but_of_costs() -> None:
    shown = metrics(NAMES, student=0.6, teacher=0.25)
    del shown["kept"]
    lines = terminal_table(shown).splitlines()
    assert not any("kept" in line and not line.startswith("teacher: as it came") for line in lines)
    assert not any("240%" in line for line in lines) and max(map(len, lines)) <= WIDTH
    assert next(line for line in lines if line.strip().startswith("layers")).split()[-1] == "43%"
    assert sum(line.startswith("teacher: as it came, not trained on this data") for line in lines) == 1
    assert set_table(shown, "union").splitlines()[-1].endswith("| 0.300 | 0.125 |")


def test_the_table_says_how_many_queries_count_as_missed() -> None:
    shown = metrics(NAMES)
    assert "missed" not in terminal_table(shown)
    shown["student"]["local"]["tasks"][NAMES[0]]["missed"] = 12
    line = "12 of 24,850 queries were rejected, or their picture or positives, and count as missed"
    assert line in terminal_table(shown)


def test_several_datasets_are_named_and_one_is_not_repeated() -> None:
    assert set(labels(metrics(NAMES[:2])).values()) == {"image+text→image+text"}
    assert labels(metrics(NAMES))["fashion200k_task3"] == "fashion200k image+text→image+text"


def test_a_teacher_that_finds_nothing_breaks_no_table() -> None:
    assert "–" in terminal_table(metrics(NAMES[:1], student=0.1, teacher=0.0))


def test_the_markdown_tables_have_a_line_for_each_set() -> None:
    lines = set_table(metrics(NAMES), "local").splitlines()
    assert len(lines) == 2 + len(NAMES) + 1 and len({line.count("|") for line in lines}) == 1
    assert lines[-1] == "| mean |  |  | 0.050 | 0.200 | 0.450 | 0.500 | 90% |"


def test_a_task_may_hold_what_parts_cells() -> None:
    table = markdown_table([("set", "hit"), ("a | b\nc", "1")], text_columns=1)
    assert table.splitlines() == ["| set | hit |", "| --- | ---: |", r"| a \| b<br>c | 1 |"]
    assert markdown_table([("set", "hit")]).splitlines()[1] == "| --- | --- |"


def smaller(queries: int = 800) -> dict:
    """Rows of smaller vectors in the shape of metrics.json."""

    def row(dim: int, precision: str, nbytes: int, local: float, union: float) -> dict:
        lost = {"local": 0.45 - local, "union": 0.225 - union}
        size = {"dim": dim, "precision": precision, "bytes": nbytes}
        return {**size, "local": {"hit@5": local}, "union": {"hit@5": union}, "lost": lost}

    rows = [row(64, "float16", 128, 0.4, 0.2), row(64, "binary", 8, 0.1, 0.05)]
    return {"queries": queries, "of": 800, "rows": [*rows, row(1536, "float16", 3072, 0.45, 0.225)]}


def test_smaller_vectors_have_rows_by_their_bytes() -> None:
    shown = metrics(NAMES)
    assert smaller_rows(shown) == [] and smaller_line(shown) == ""
    shown["student"]["smaller"] = smaller()
    assert smaller_rows(shown) == [
        ("1,536 × float16", "3,072", "0.450", "0.000", "0.225", "0.000"),
        ("64 × float16", "128", "0.400", "0.050", "0.200", "0.025"),
        ("64 × binary", "8", "0.100", "0.350", "0.050", "0.175"),
    ]
    assert markdown_table([SMALLER, *smaller_rows(shown)]).splitlines()[-1].startswith("| 64 × binary | 8 | 0.100")
    assert smaller_line(shown).startswith("All 800 queries.")
    shown["student"]["smaller"] = smaller(queries=96)
    assert smaller_line(shown).startswith("96 of 800 queries, evenly spaced.")


@pytest.mark.parametrize("model", ["student", "asymmetric"])
def test_the_table_says_that_the_index_holds_smaller_vectors(model: str) -> None:
    shown = metrics(NAMES)
    assert stored_line(shown) == ""
    shown["asymmetric"]["searched"] = model == "asymmetric"
    shown[model]["precision"] = "int8"
    assert "the index holds int8, and this is what it finds" in terminal_table(shown)


def test_every_measure_has_a_row_with_all_models_and_pools() -> None:
    rows = list(measure_rows(metrics(NAMES)))
    assert [row[0] for row in rows] == list(MEASURES)
    assert rows[0][1:] == ("0.200", "0.450", "0.500", "0.100", "0.225", "0.250")


def test_a_task_may_hold_what_plots_take_for_formulas() -> None:
    shown = draw_quality(metrics(["from $5^ to $9_task0", "over $9_task0"]))
    shown.savefig(io.BytesIO(), format="svg")


def test_plots_show_every_set_and_both_models() -> None:
    quality, cost = draw_quality(metrics(NAMES)), draw_cost(metrics(NAMES))
    assert [tick.get_text() for tick in quality.axes[1].get_xticklabels()] == list(labels(metrics(NAMES)).values())
    notes = [text.get_text() for text in cost.axes[0].texts]
    assert "student: 12 layers, 12,000.0 M" in notes and "chance" in notes


def test_a_student_measured_alone_has_the_same_tables_without_the_teacher() -> None:
    alone = {
        name: value for name, value in metrics(NAMES).items() if name not in ("teacher", "asymmetric", "cut", "kept")
    }
    table = set_table(alone, "local").splitlines()
    assert len({line.count("|") for line in table}) == 1 and len(next(measure_rows(alone))) == 3
    shown = terminal_table(alone)
    assert "0.450" in shown and "teacher" not in shown and "kept" not in shown
    assert len(draw_quality(alone).axes[0].containers) == 1
    assert draw_cost(alone).axes[0].texts[0].get_text().startswith("student: 12 layers")


@pytest.mark.parametrize(("searched", "alone"), [(True, False), (False, False), (True, True)])
def test_the_table_says_where_searches_give_the_row_of_the_teachers_index(searched: bool, alone: bool) -> None:
    shown = metrics(NAMES)
    shown["asymmetric"]["searched"] = searched
    for name in ("teacher", "cut", "kept") if alone else ():
        del shown[name]
    lines = terminal_table(shown).splitlines()
    assert any("this is what searches of this run give" in line for line in lines) == searched
    assert [line.split()[-1] for line in lines if "teacher's index, " in line] == ["0.300", "0.150"]
    assert any(line.startswith("cut: ") for line in lines) == (not alone) and max(map(len, lines)) <= WIDTH
