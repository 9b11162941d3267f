"""The report shows what metrics.json holds, in a terminal's width, with any number of sets."""

import csv
import io

import pytest

from stages.evaluation.measures import MEASURES
from stages.evaluation.plots import draw_cost, draw_quality
from stages.evaluation.report import WIDTH, labels, markdown_report, quality_rows, terminal_table, to_csv

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
    assert any("layers" in line and "28" in line and "12" in line for line in lines)


def test_several_datasets_are_told_apart_and_one_is_not_repeated() -> None:
    assert set(labels(metrics(NAMES[:2])).values()) == {"image+text→image+text"}
    assert labels(metrics(NAMES))["fashion200k_task3"] == "fashion200k image+text→image+text"


def test_a_teacher_that_finds_nothing_breaks_no_table() -> None:
    assert "–" in terminal_table(metrics(NAMES[:1], student=0.1, teacher=0.0))


def test_the_markdown_report_says_what_the_student_keeps() -> None:
    report = markdown_report(metrics(NAMES))
    assert "12 of the teacher's 28 layers and keeps 90.0% of its mean local hit@5" in report
    for table in report.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_leading_dimensions_have_a_section_where_they_were_trained() -> None:
    told = metrics(NAMES)
    assert "leading dimensions" not in markdown_report(told)
    told["student"]["dimensions"] = [{"dim": 64, "local": {"hit@5": 0.4}, "union": {"hit@5": 0.2}}]
    lines = markdown_report(told).splitlines()
    assert "| 64 | 0.400 | 0.200 |" in lines and "| 1,536 | 0.450 | 0.225 |" in lines


def test_the_csv_has_every_measure_of_every_set() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(quality_rows(metrics(NAMES), MEASURES)))))
    assert len(rows) == 3 * 2 * len(NAMES)
    assert {row["hit@5"] for row in rows if row["model"] == "student" and row["scope"] == "local"} == {"0.45"}


def test_plots_show_every_set_and_both_models() -> None:
    quality, cost = draw_quality(metrics(NAMES)), draw_cost(metrics(NAMES))
    assert [tick.get_text() for tick in quality.axes[1].get_xticklabels()] == list(labels(metrics(NAMES)).values())
    notes = [text.get_text() for text in cost.axes[0].texts]
    assert "student: 12 layers, 12,000.0 M" in notes and "chance" in notes


def test_a_student_measured_alone_has_the_same_tables_without_the_teacher() -> None:
    alone = {name: value for name, value in metrics(NAMES).items() if name not in ("teacher", "cut", "kept")}
    assert "its teacher was not measured" in markdown_report(alone)
    for table in markdown_report(alone).split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1
    shown = terminal_table(alone)
    assert "0.450" in shown and "teacher" not in shown and "kept" not in shown
    assert {row[0] for row in quality_rows(alone, MEASURES)} == {"model", "student"}
    assert len(draw_quality(alone).axes[0].containers) == 1
    assert draw_cost(alone).axes[0].texts[0].get_text().startswith("student: 12 layers")
