"""What `python -m tests.bench costs` counts, on a small scale."""

import subprocess
import sys

from tests.bench import costs, counted
from tests.support import ROOT


def test_passes_are_those_of_the_tasks_that_the_stage_makes_on_so_many_machines():
    found = {what.partition(" queries on ")[2]: now for what, _, now, _ in costs._ranking()}
    assert {who.partition(",")[0]: now.partition(",")[0] for who, now in found.items()} == {
        "4 CPUs": "24",
        "384 CPUs": "24",
        "4 GPUs": "6",
        "32 GPUs": "31",
    }


def test_the_teacher_reads_as_many_queries_as_the_steps_draw_and_never_more_than_there_are():
    ((_, before, now, _),) = counted.teacher_rows()
    assert (before, now) == ("1,150,203", "560,000")


def test_a_commit_reads_again_what_ray_data_wrote_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(counted, "SHARDS", 3)
    monkeypatch.setattr(counted, "SHARD", 1000)
    (_, before, own, _), (_, _, others, _) = counted.read_again(tmp_path)
    assert before == others == "3.0 kB" and own == "0 B"


def test_a_plan_looks_at_the_folders_of_many_pictures_and_at_each_of_few(tmp_path, monkeypatch):
    monkeypatch.setattr(counted, "EACH", 5)
    monkeypatch.setattr(counted.changes, "MOST", 20)
    seen, look = [], counted.changes.stat_below
    monkeypatch.setattr(counted.changes, "stat_below", lambda root, name: seen.append(name) or look(root, name))
    measured, computed = counted.planning(tmp_path)
    assert len(seen) == counted.ROUNDS * counted.FOLDERS * 5  # those of the way before; now folders alone
    assert "150 pictures" in measured[0] and "5,000,000" in computed[0]


def test_what_sorting_takes_is_told_beside_the_products_of_a_full_task(monkeypatch):
    monkeypatch.setattr(counted, "in_turns", lambda *ways: [0.01, 2.0][: len(ways)])
    monkeypatch.setattr(counted, "CANDIDATES", 9000)
    monkeypatch.setattr(counted, "DIM", 4)
    assert "0.010 s for a tile of 8,192, whose products with 8,192 queries take 16.0 s" in counted.sorting()


def test_the_benchmarks_begin_without_transformers_which_some_have_to_prepare_for():
    code = "import sys; import tests.bench.__main__; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
