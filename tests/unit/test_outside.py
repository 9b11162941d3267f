"""A teacher from outside without a cluster: what is read of it, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.load import load_config
from stages import features
from stages.contract.context import InputError, StageError
from stages.contract.params import Cluster
from stages.data.keys import hash_ids
from stages.distributed import outside
from tests.outside_world import PROMPTS, WIDTH, drawn_vectors, write_static, write_vectors
from tests.support import commit
from tests.training_world import write_ingest

IDS = ["9:0", "9:1", "9:2"]
FLOATS = pa.list_(pa.float32())
MODELS = SimpleNamespace(batch_size=2, cluster=Cluster(threads=1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of this test alone."""
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "cache"))


def asked(side: str, texts: list[str], image: str | None = None) -> pa.Table:
    key = "qid" if side == "query" else "did"
    given = {key: IDS[: len(texts)], "text": texts, "image_id": pa.array([image] * len(texts), pa.string())}
    return pa.table(given)


def read(teacher: Path, side: str, texts: list[str], image: str | None = None) -> np.ndarray:
    column = outside.read_outside(MODELS, asked(side, texts, image), side=side, teacher=lambda: teacher)["vector"]
    return np.array(column.to_pylist(), np.float32).reshape(len(texts), column.type.list_size)


# ------------------------------------------------------------------------------------------------------------ a model


def test_a_model_reads_plain_texts_with_its_own_prompts_and_no_instruction(tmp_path):
    from sentence_transformers import SentenceTransformer

    teacher, texts = write_static(tmp_path / "model", PROMPTS), ["red square", "Thing number 3", "red"]
    model = SentenceTransformer(str(teacher), device="cpu")
    for side, prompt in (("query", "find "), ("candidate", "read ")):
        expected = model.encode([prompt + text for text in texts])
        assert read(teacher, side, texts) == pytest.approx(expected, abs=2e-3)
    assert not np.allclose(read(teacher, "query", texts), read(teacher, "candidate", texts), atol=0.05)


def test_no_text_at_all_has_the_width_of_the_others(tmp_path):
    assert read(write_static(tmp_path / "model"), "query", []).shape == (0, WIDTH)


def test_a_picture_is_refused_by_its_rows_name(tmp_path):
    teacher = write_static(tmp_path / "model")
    with pytest.raises(StageError, match=r"reads texts alone, and 9:0 has a picture"):
        read(teacher, "query", ["red"], image="i0")


def test_a_model_that_needs_code_or_is_no_encoder_of_texts_is_refused(tmp_path):
    teacher = write_static(tmp_path / "model")
    outside.check(str(teacher))
    weights = next(teacher.rglob("model.safetensors"))
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match=r"pytorch_model\.bin may hold code and is not read"):
        outside.check(str(teacher))
    settings = teacher / "config_sentence_transformers.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({**known, "model_type": "SparseEncoder"}))
    with pytest.raises(InputError, match="is a SparseEncoder"):
        outside.check(str(teacher))
    settings.write_text(json.dumps(known))
    (teacher / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]))
    with pytest.raises(InputError, match=r"needs code of its own \(own\.Module\), which is never run"):
        outside.check(str(teacher))
    (teacher / "modules.json").write_text("{")
    with pytest.raises(InputError, match=r"modules\.json that can't be read"):
        outside.check(str(teacher))


# ------------------------------------------------------------------------------------------------------------ vectors


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float16()), FLOATS, pa.list_(pa.float64(), 5), pa.large_list(pa.float32())]
)
def test_vectors_of_any_float_type_are_found_by_id_in_a_file_and_in_a_directory(tmp_path, kind):
    rows = drawn_vectors(IDS, 5)
    whole = write_vectors(tmp_path / "whole.parquet", rows, kind)
    write_vectors(tmp_path / "parts" / "a.parquet", rows[2:], kind)
    write_vectors(tmp_path / "parts" / "b" / "c.parquet", rows[:2], kind)
    for teacher in (whole, tmp_path / "parts"):
        outside.check(str(teacher))
        assert outside.width_of(str(teacher)) == 5
        for side in ("query", "candidate"):
            found = read(teacher, side, ["one", "two", "three"])
            assert found == pytest.approx(np.array([row["vector"] for row in rows]), abs=2e-3)


def test_a_column_of_sides_tells_apart_what_has_one_id(tmp_path):
    asking, asked_for = drawn_vectors(IDS, 5, seed=1), drawn_vectors(IDS, 5, seed=2)
    rows = [{**row, "side": "query"} for row in asking] + [{**row, "side": "candidate"} for row in asked_for]
    teacher = write_vectors(tmp_path / "v.parquet", rows, FLOATS)
    for side, own in (("query", asking), ("candidate", asked_for)):
        assert read(teacher, side, ["one", "two"]) == pytest.approx(
            np.array([row["vector"] for row in own[:2]]), abs=2e-3
        )


def test_other_columns_are_not_read_wherever_they_stand(tmp_path):
    import pyarrow.parquet as pq

    rows = drawn_vectors(IDS, 5)
    vectors = pa.array([row["vector"] for row in rows], FLOATS)
    more = pa.table({"text": ["long"] * 2, "id": IDS[:2], "vector": vectors[:2]})
    (tmp_path / "parts").mkdir()
    pq.write_table(more, tmp_path / "parts" / "a.parquet")
    pq.write_table(pa.table({"vector": vectors[2:], "id": IDS[2:]}), tmp_path / "parts" / "b.parquet")
    outside.check(str(tmp_path / "parts"))
    found = read(tmp_path / "parts", "query", ["one", "two", "three"])
    assert found == pytest.approx(np.array([row["vector"] for row in rows]), abs=2e-3)


def test_files_that_differ_in_what_is_read_are_refused(tmp_path):
    write_vectors(tmp_path / "a.parquet", drawn_vectors(IDS[:1], 5), FLOATS)
    write_vectors(tmp_path / "b.parquet", [{**row, "side": "query"} for row in drawn_vectors(IDS, 5)], FLOATS)
    with pytest.raises(InputError, match=r"b.parquet has id, side, vector of float, other files id, vector of"):
        outside.check(str(tmp_path))


@pytest.fixture
def data(tmp_path):
    """An artifact whose queries and candidates are 9:0 to 9:23."""
    return write_ingest(tmp_path / "store")


def needed(ids: list[str]) -> dict[str, np.ndarray]:
    return {side: np.sort(hash_ids(ids)) for side in ("query", "candidate")}


def test_missing_ids_are_counted_and_one_is_named_before_anything_is_read(tmp_path, data):
    teacher = write_vectors(tmp_path / "v.parquet", drawn_vectors(["9:0", "9:2"], 5), FLOATS)
    outside.check_ids(str(teacher), needed(["9:0", "9:2"]), data)
    with pytest.raises(StageError, match=r"has no vector of 2 of 3 rows on the query side, for example 9:4; add"):
        outside.check_ids(str(teacher), needed(["9:0", "9:4", "9:7"]), data)


def test_an_id_that_stands_twice_is_refused(tmp_path, data):
    teacher = write_vectors(tmp_path / "v.parquet", drawn_vectors(["9:0", "9:0"], 5), FLOATS)
    with pytest.raises(StageError, match=r"holds 1 ids more than once"):
        outside.check_ids(str(teacher), needed(["9:0"]), data)


def test_a_vector_of_another_width_and_one_beyond_fp16_are_refused(tmp_path):
    rows = [*drawn_vectors(["9:0"], 5), *drawn_vectors(["9:1"], 4), *drawn_vectors(["9:2"], 5)]
    with pytest.raises(StageError, match="the vector of 9:1 has 4 values and others have 5"):
        read(write_vectors(tmp_path / "a.parquet", rows, FLOATS), "query", ["one", "two"])
    rows = [{"id": "9:0", "vector": [1e6, 0.0]}]
    with pytest.raises(StageError, match="do not fit fp16; scale its vectors"):
        read(write_vectors(tmp_path / "b.parquet", rows, FLOATS), "query", ["one"])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["a"], "embedding": [[1.0]]}, "has no column 'vector'"),
        ({"id": [1], "vector": [[1.0]]}, "the column 'id' is int64"),
        ({"id": ["a"], "vector": [[1]]}, "the column 'vector' is list<.*int64>"),
        ({"id": pa.array([], pa.string()), "vector": pa.array([], FLOATS)}, "holds no vectors"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, said):
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=said):
        features.check(features.Params(teacher=str(tmp_path / "v.parquet")))


def test_what_is_no_teacher_is_refused(tmp_path):
    (tmp_path / "notes.parquet").write_text("no Parquet at all")
    (tmp_path / "empty").mkdir()
    for place, said in (("notes.parquet", "is no Parquet file"), ("empty", "holds no vectors"), ("gone", "not there")):
        with pytest.raises(InputError, match=said):
            outside.check(str(tmp_path / place))
    with pytest.raises(InputError, match="is not on a disk"):
        outside.check("s3://bucket/vectors")


# -------------------------------------------------------------------------------------------- the plan and the tables


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("features.layer=2", "features.layer=2 in override features.layer=2 asks for the backbone's layers"),
        ("features.layer=auto", "set features.layer=-1"),
        ("distill.teacher=live", "set distill.teacher=cached"),
        ("index.candidates=teacher", "set index.candidates=student"),
        (
            "distill.turn=false",
            "vectors of 5 values and a student's have 128, which distill.feature_loss=cosine can't",
        ),
    ],
)
def test_what_needs_layers_or_the_same_width_is_refused_before_anything_runs(tmp_path, setting, said):
    teacher = write_vectors(tmp_path / "v.parquet", drawn_vectors(IDS, 5), FLOATS)
    given = [f"features.teacher={teacher}", "distill.feature_weight=1"]
    load_config("demo", given)
    load_config("demo", [*given, "distill.turn=false", "distill.feature_loss=kl"])
    with pytest.raises(InputError, match=said):
        load_config("demo", [*given, setting])


def test_the_fingerprint_follows_the_files_and_not_their_place(tmp_path):
    write_vectors(tmp_path / "a" / "v.parquet", drawn_vectors(IDS, 5), FLOATS)

    def known(path: Path) -> object:
        return features.fingerprint(features.Params(teacher=str(path)))

    alone, before = known(tmp_path / "a" / "v.parquet"), known(tmp_path / "a")
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert (known(moved / "v.parquet"), known(moved)) == (alone, before)
    (moved / ".git").mkdir()
    (moved / ".git" / "index").write_text("hidden")
    assert known(moved) == before
    write_vectors(moved / "v.parquet", drawn_vectors(IDS, 6), FLOATS)
    assert known(moved) != before and known(moved / "v.parquet") != alone
    assert features.fingerprint(features.Params()) is None


def test_the_key_of_features_changes_with_the_file_and_not_when_it_moves(tmp_path):
    from pipeline.planning.dag import stages_of
    from pipeline.planning.plan import key_of, key_parts
    from pipeline.planning.sources import read_sources

    def key(path: Path | str) -> str:
        config = load_config("demo", [f"features.teacher={path}"] if path else [])
        sources = read_sources(stages_of(config), config)
        stage = next(stage for stage in stages_of(config) if stage.name == "features")
        return key_of(key_parts(stage, config, {"features.teacher": ""}, sources["features"], {}))

    before = key(write_vectors(tmp_path / "a" / "v.parquet", drawn_vectors(IDS, 5), FLOATS))
    moved = (tmp_path / "a").rename(tmp_path / "b") / "v.parquet"
    assert key(moved) == before != key("")
    assert key(write_vectors(moved, drawn_vectors(IDS, 6), FLOATS)) != before


def test_the_depth_curve_says_that_no_layer_of_it_teaches():
    from stages.evaluation.depth_view import teaches

    assert teaches({"teacher": "outside", "centred": True}) == "Another model teaches, with the mean taken off"


def test_a_teacher_from_outside_has_no_layer_that_could_be_searched(tmp_path):
    from stages.distributed.teacher import taught
    from tests.support import begin

    context = begin(tmp_path / "made", "features")
    context.output.write_json("features.json", {"teacher": "outside", "dim": 5, "rows": 3})
    assert taught(commit(tmp_path / "made", context)) is None
