"""The made M-BEIR that `python -m tests.bench scale` grows, and how it reads its measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.data.sources import mbeir
from tests import mbeir_made
from tests.bench import scale, watch
from tests.bench.published import SETS


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mbeir_made, "PART_BYTES", 20_000)  # so that there are several
        counts = mbeir_made.write_mbeir(root, 600)
    mbeir_made.unpack(root)
    return root, counts


def rows(root: Path, pattern: str) -> dict[str, list[dict]]:
    return {path.stem: [json.loads(line) for line in path.open()] for path in sorted(root.glob(pattern))}


def test_it_is_in_the_published_layout_with_all_sixteen_sets(made):
    root, _ = made
    mbeir.require(root)
    tests = [file for file in mbeir.query_files(root) if file.split == "test"]
    assert {f"{file.dataset}_task{file.task_id}" for file in tests} == {one.name for one in SETS}
    assert all(file.qrels and file.pools[0] != "union_test" for file in tests)
    assert {pool.pool for pool in mbeir.candidate_files(root)} >= {"mscoco_task0_test", "union_val", "union_train"}
    assert len(mbeir.instructions(root)) == len(SETS)


def test_it_has_the_size_that_was_asked_for_in_the_published_proportions(made):
    root, counts = made
    pools = rows(root, "cand_pool/local/*")
    assert counts["candidates"] == sum(map(len, pools.values())) == pytest.approx(600, abs=4 * len(SETS))
    assert len(pools["mbeir_edis_task2_cand_pool"]) == max(map(len, pools.values()))
    assert counts["lines"] == sum(map(len, {**rows(root, "cand_pool/*/*"), **rows(root, "query/*/*")}.values()))


def test_every_candidate_stands_once_in_the_union_and_infoseek_s_pools_hold_oven_s(made):
    root, _ = made
    union = [row["did"] for row in rows(root, "cand_pool/global/*")["mbeir_union_test_cand_pool"]]
    local = rows(root, "cand_pool/local/*")
    assert len(union) == len(set(union))
    assert set(union) == {row["did"] for pool in local.values() for row in pool}
    infoseek = [row["did"] for row in local["mbeir_infoseek_task6_cand_pool"]]
    assert {did.partition(":")[0] for did in infoseek} == {"5", "6"}


def test_what_queries_ask_for_stands_in_the_union_of_their_split(made):
    root, _ = made
    for split in ("train", "val", "test"):
        there = {row["did"] for row in rows(root, "cand_pool/global/*")[f"mbeir_union_{split}_cand_pool"]}
        asked = [row["pos_cand_list"] for part in rows(root, f"query/{split}/*").values() for row in part]
        assert {did if isinstance(did, str) else did["did"] for some in asked for did in some} <= there
        assert {type(did) for some in asked for did in some} == {str, dict}


def test_every_picture_comes_out_of_the_parts(made):
    root, counts = made
    assert len(list(root.glob("mbeir_images.tar.gz.part-*"))) > 1
    named = [
        row.get("img_path") or row.get("query_img_path") for part in rows(root, "*/*/*.jsonl").values() for row in part
    ]
    assert all((root / path).is_file() for path in named if path)
    assert sum(1 for _ in root.rglob("*.jpg")) == counts["pictures"]


def test_it_is_the_same_every_time(made, tmp_path):
    root, counts = made
    assert mbeir_made.write_mbeir(tmp_path, 600) == counts
    for name in ("cand_pool/global/mbeir_union_test_cand_pool.jsonl", "query/train/mbeir_cirr_train.jsonl"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()


def test_sizes_are_said_in_short():
    assert scale.sizes("1m, 10k,500") == [500, 10_000, 1_000_000]


def test_a_pace_is_that_of_the_last_files_by_that_of_the_first():
    even = [(float(number), 100) for number in range(36)]
    slower = [*even[:18], *((17.0 + 2 * number, 100) for number in range(1, 19))]
    assert scale.pace(even) == pytest.approx(1)
    assert scale.pace(slower) == pytest.approx(2)
    assert scale.pace(even[:20]) is None


def measured(**changed) -> dict:
    one = {"rows": 1000, "seconds": 2.0, "pace": 1.25, "resumed": False, "files": 3, "bytes": 2_000_000}
    one |= dict.fromkeys(("driver", "worker", "workers", "objects", "spilled"), 300 * scale.MIB) | changed
    made = dict.fromkeys(("lines", "candidates", "train", "val", "test", "pictures"), 7) | {"seconds": 1.0}
    return {"head": "`command`", "made": made, "unpacked": {"seconds": 1.0}, **dict.fromkeys(scale.NAMES, one)}


def test_a_section_shows_what_was_measured():
    found = measured()
    table = scale.section(10, found)
    assert "| features | 1,000 | 2.0 | 500 | **1.25** | 300 |" in table and "2.0 MB |" in table
    twice = measured(seconds=4.0, driver=900 * scale.MIB)
    assert "| index | 2,000 µs, 300 MiB | 4,000 µs, 900 MiB | **2.00** | **3.00** |" in scale.growth(
        {10: found, 20: twice}
    )


def test_what_has_grown_by_more_than_a_fifth_stands_out():
    assert [scale.marked(grown) for grown in (None, 0.9, 1.2, 1.201)] == ["–", "0.90", "1.20", "**1.20**"]
    assert scale.ratio(2.5, 2.0) == "**1.25**" and scale.ratio(2.0, 2.5) == "0.80" and scale.ratio(2.0, None) == "–"


def test_of_a_stage_that_was_stopped_no_pace_is_told():
    found = measured(resumed=True, pace=None)
    assert "| features (resumed) | 1,000 | 2.0 | – | – | 300 |" in scale.section(10, found)
    assert "| index | –, 300 MiB | –, 300 MiB | – | 1.00 |" in scale.growth({10: found, 20: found})


def test_the_peak_of_a_process_is_seen_after_it_gave_the_memory_back(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.05)
    code = "import time; held = bytearray(b'x') * 60_000_000; time.sleep(1); del held; time.sleep(0.3)"
    process = subprocess.Popen([sys.executable, "-c", code])
    with watch.Watch(process.pid, tmp_path) as seen:
        process.wait()
    assert 60e6 < seen.peaks["driver"] < 120e6
    assert seen.peaks["workers"] == seen.peaks["spilled"] == 0


STAGE = """
import json, sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

work, stage = Path(sys.argv[1]), sys.argv[2]
print(stage, file=(work / "ran").open("a"))
artifact = work / "store" / stage / "key"
for number in range(30):
    for folder in ("images", "features", "embeddings"):
        path = artifact / "attempt" / folder / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [0] * 5}), path)
files = [{"path": "x", "size": 7}]
(artifact / "manifest.json").write_text(json.dumps({"attempt": "attempt", "seconds": 3.0, "files": files}))
print(json.dumps({"stages": {stage: {"uri": str(artifact)}}}))
"""


def test_a_size_is_measured_stage_by_stage_and_never_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "command", lambda work, stage: [sys.executable, "-c", STAGE, str(work), stage])
    monkeypatch.setattr(scale, "NAMES", ("ingest", "features"))
    work = tmp_path / "80"
    found = scale.measure(work, 80)
    assert (work / "ran").read_text().split() == ["ingest", "features"]
    assert found["ingest"]["rows"] == found["made"]["lines"] and found["features"]["rows"] == 150
    assert found["features"]["seconds"] == 3.0 and (found["features"]["files"], found["features"]["bytes"]) == (1, 7)
    assert not found["ingest"]["resumed"] and found["ingest"]["pace"] and found["features"]["pace"] is None
    del found["ingest"]
    (work / "measured.json").write_text(json.dumps(found))
    again = scale.measure(work, 80)["ingest"]
    assert again["resumed"] and again["pace"] is None
    assert (work / "ran").read_text().split() == ["ingest", "features", "ingest"]
    assert scale.measure(work, 80)["features"]["rows"] == 150
