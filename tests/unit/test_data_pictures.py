"""Pictures after a kill: what whole files tell is not done again, and no picture is lost or written twice."""

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.artifacts.store import Store
from stages.data.images import ImageLimits
from stages.data.ingest.pictures import PATHS, Ledger, new_paths, write_pictures
from stages.data.ingest.survey import Firsts
from stages.data.keys import NOTHING, hash64, hash_ids
from tests.mbeir_files import png, write_bytes


def table(*paths: str) -> pa.Table:
    return pa.table({"path": list(paths)}, schema=PATHS)


def stored(output) -> list[str]:
    paths = output.filesystem.get_file_info(pa.fs.FileSelector(f"{output.base}/images"))
    return sorted(name for path in paths for name in pq.read_table(path.path)["image_id"].to_pylist())


def test_a_killed_run_s_pictures_are_taken_over(tmp_path):
    for name in ("red", "green", "blue"):
        write_bytes(tmp_path / "data", f"{name}.png", png(name))
    write_bytes(tmp_path / "data", "red_again.png", png("red"))
    write_bytes(tmp_path / "data", "torn.png", png("red", (90, 90))[:120])
    store = Store(tmp_path / "store")

    # The killed run: the owner of red never wrote its file, another task was told that red is owned.
    killed, ledger = store.begin("ingest", "k"), Ledger()
    ledger.record([("red.png", "00" * 16)], [])
    red = Ledger()
    write_pictures(table("red.png"), tmp_path / "data", ImageLimits(), red.record, store.begin("ingest", "other"))
    ledger.owners = dict(red.owners)
    write_pictures(
        table("red_again.png", "green.png", "torn.png"), tmp_path / "data", ImageLimits(), ledger.record, killed
    )

    again, ledger = store.begin("ingest", "k"), Ledger()
    files = [f"{again.base}/images/{name}" for name in again.adopt("images")]
    done = ledger.take_over(files, again.filesystem)
    assert set(done) == set(hash_ids(["red_again.png", "green.png", "torn.png"]))
    left = ["red.png", "blue.png"]
    assert write_pictures(table(*left), tmp_path / "data", ImageLimits(), ledger.record, again) == 2
    verdicts, count, rejects = ledger.conclude()
    assert count == 3 and len(stored(again)) == len(set(stored(again))) == 3
    assert rejects["source"].to_pylist() == ["torn.png"]
    ids, reasons = verdicts.look_up(hash_ids(["red.png", "red_again.png", "blue.png", "torn.png"]))
    assert ids[0] == ids[1] and set(stored(again)) >= {ids[0], ids[2]} and reasons[3] == "truncated image"


def test_paths_that_are_done_are_not_asked_for_again():
    paths = ["a.png", None, "b.png", "a.png"]
    hashes = hash_ids(paths)
    rows = pa.table({"reason": pa.nulls(4, pa.string()), "image_path": paths, "position": [0, 1, 2, 3]})
    firsts = Firsts.of(hashes, np.arange(4))
    assert new_paths(rows, firsts, np.empty(0, np.uint64))["path"].to_pylist() == ["a.png", "b.png"]
    assert new_paths(rows, firsts, np.array([hash64("a.png")], np.uint64))["path"].to_pylist() == ["b.png"]
    assert NOTHING not in firsts.keys


def test_a_corpus_without_pictures_leaves_nothing_to_take_over(tmp_path):
    output = Store(tmp_path).begin("ingest", "k")
    pq.write_table(pa.table({"image_id": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert len(Ledger().take_over([str(tmp_path / "empty.parquet")], output.filesystem)) == 0
