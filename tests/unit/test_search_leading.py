"""Leading dimensions: the stored vectors cut and brought to unit length, whatever holds them."""

import json

import numpy as np
import pyarrow as pa
import pytest

from stages.search.leading import Leading, shorten, trained_dimensions


def table(vectors: np.ndarray) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), vectors.shape[1])
    return pa.table({"did": [f"9:{row}" for row in range(len(vectors))], "vector": column})


def test_vectors_are_cut_to_unit_length_and_the_rest_stays() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float16)
    vectors[3, :3] = 0  # nothing left of this one
    whole = pa.table({"did": list("abcde"), "vector": table(vectors)["vector"], "modality": ["text"] * 5})
    expected = vectors[:, :3].astype(np.float32)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    for shorter in (shorten(whole.slice(1), 3), shorten(whole.slice(1).to_batches()[0], 3)):  # slices have an offset
        assert shorter.schema.names == whole.schema.names and type(shorter) in (pa.Table, pa.RecordBatch)
        assert np.array(shorter["vector"].to_pylist()) == pytest.approx(expected[1:], abs=1e-7)
        assert shorter["did"].to_pylist() == list("bcde")


def test_an_index_is_read_by_its_leading_values() -> None:
    class Index:
        def batches(self, columns):
            return iter(pa.table({"vector": table(np.eye(4))["vector"]}).to_batches())

    (batch,) = Leading(Index(), 2).batches(("vector",))
    assert batch["vector"].to_pylist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_a_model_says_which_dimensions_it_was_trained_for(tmp_path) -> None:
    for config, dims in (({}, []), ({"matryoshka_dimensions": [16, 32]}, [16, 32])):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert trained_dimensions(tmp_path) == dims
