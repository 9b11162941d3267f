"""The encoder, for each family: neighbours don't matter, pruning is exact, positions are stock, loaders agree."""

import gc
import json
import shutil
import threading
import weakref

import numpy as np
import pytest
import torch
import transformers

from stages.contract.context import StageError
from stages.export.checkpoint import export_student, save_backbone
from stages.export.loaders import LOADERS
from stages.export.parity import check_parity, stock_vectors
from stages.model.encoder import READERS, Encoder, load_collator, readers_for
from stages.model.families import FAMILIES
from stages.model.inputs import Batch, bucket_by_length, prefetch
from stages.model.prompt import RETRIEVAL_TOKEN, SPECIAL_TOKENS, clean
from stages.model.prune import kept_layers, pruned_config
from stages.model.rows import Row
from tests.tiny_models import depths, picture, ragged_rows, write_checkpoint

ROUNDING = 5e-6
"""One token a row has its products summed in another order than all tokens, and by where weights lie in memory."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def checkpoint(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return Encoder.load(checkpoint)


@pytest.fixture(scope="module")
def kept(checkpoint) -> int:
    """Layers of a student of the checkpoint."""
    return depths(pruned_config(checkpoint, None).model_type)[1]


def test_a_vector_does_not_depend_on_its_neighbours(encoder):
    rows = ragged_rows()
    together = encoder.encode(rows)
    alone = np.concatenate([encoder.encode([row]) for row in rows])
    # fp32 sums in another order for another batch shape; leaks measure above 1e-2.
    assert np.abs(together - alone).max() < 2e-6
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_batches_and_threads_that_read_images_change_no_vector(checkpoint, encoder):
    rows = ragged_rows() * 2
    expected = encoder.encode(rows, batch_size=3)
    collator = load_collator(checkpoint, encoder.backbone.config.text_config.vocab_size, readers=4)
    assert np.array_equal(Encoder(encoder.backbone, collator).encode(rows, batch_size=3), expected)
    assert np.abs(encoder.encode(rows) - expected).max() < 2e-6


def test_beside_a_model_on_a_cpu_as_many_threads_decode_as_torch_has(monkeypatch):
    for threads, readers in ((1, 1), (3, 3), (99, READERS)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert readers_for("cpu") == readers


def test_the_next_item_is_prepared_while_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def prepare(item: int) -> int:
        begun[item].set()
        return item

    prepared = prefetch(prepare, range(3))
    assert next(prepared) == 0 and begun[1].wait(5) and not begun[2].is_set()
    assert list(prepared) == [1, 2]


@pytest.mark.parametrize("readers", [1, 4])
def test_an_image_that_is_none_stops_at_its_batch(checkpoint, encoder, readers):
    collator = load_collator(checkpoint, encoder.backbone.config.text_config.vocab_size, readers)
    batches = Encoder(encoder.backbone, collator).batches([Row("a star"), Row(None, b"none"), Row("a star")], 1)
    assert next(batches)[0] == 0
    with pytest.raises(OSError, match="cannot identify image"):
        next(batches)


def test_different_rows_have_different_vectors(encoder):
    vectors = encoder.encode(ragged_rows())
    assert (vectors @ vectors.T - np.eye(len(vectors))).max() < 0.9999


def test_positions_are_those_of_the_stock_model(encoder):
    for row in ragged_rows():
        (chunk,) = encoder.collator([row]).chunks
        if chunk.grid_I3 is None:
            continue
        image = (chunk.input_ids_RL == encoder.collator.image_token).int()
        expected, _ = encoder.backbone.get_rope_index(
            chunk.input_ids_RL, mm_token_type_ids=image, image_grid_thw=chunk.grid_I3
        )
        assert torch.equal(expected, chunk.position_ids_3RL)


def test_pruned_output_is_the_normed_hidden_state(checkpoint, encoder, kept):
    pruned = Encoder.load(checkpoint, layers=kept)
    assert pruned.layers == kept
    for row in ragged_rows():
        batch = encoder.collator([row])
        (chunk,) = batch.chunks
        with torch.inference_mode():
            full = encoder.backbone(
                input_ids=chunk.input_ids_RL,
                position_ids=chunk.position_ids_3RL,
                pixel_values=None if chunk.pixels_PC is None else encoder.collator.cut.values(chunk.pixels_PC),
                image_grid_thw=chunk.grid_I3,
                use_cache=False,
                output_hidden_states=True,
            )
            expected_D = encoder.backbone.language_model.norm(full.hidden_states[kept])[0, -1]
            assert (pruned.states(batch)[0] - expected_D).abs().max() < ROUNDING
            assert torch.equal(encoder.states_by_layer(batch)[kept - 1, 0], expected_D)


LISTS = {"qwen3_vl": (1, 2, 3, 5), "qwen3_5": (1, 2, 7, 8)}
"""Layers that a student keeps: DeepStack stays with the first three, and linear attention in front of full."""


def test_any_list_of_layers_is_the_backbone_with_the_others_passed_by(checkpoint, encoder, tmp_path):
    """Passed by: the full model with the third layer's input as its output."""
    family = encoder.backbone.config.model_type
    keep = LISTS.get(family, (1, 2, 4))
    source = write_checkpoint(tmp_path / "deep", family, layers=8 if family == "qwen3_5" else 5)
    whole, student = Encoder.load(source), Encoder.load(source, keep)
    assert student.layers == len(keep) == len(student.backbone.language_model.layers)
    for number, layer in enumerate(whole.backbone.language_model.layers, start=1):
        if number not in keep:
            layer.forward = lambda hidden_states, **_: hidden_states
    save_backbone(student.backbone.config, student.backbone.state_dict(), tmp_path / "weights")
    export_student(tmp_path / "weights", source, tmp_path / "model", {}, kept=keep)
    batch = whole.collator(ragged_rows())
    with torch.inference_mode():
        expected_BD, states_BD = whole.states(batch), student.states(batch)
        assert (states_BD - expected_BD).abs().max() < ROUNDING
        assert (Encoder.load(tmp_path / "model").states(batch) - states_BD).abs().max() < ROUNDING
        assert (Encoder.load(source, len(keep)).states(batch) - expected_BD).abs().max() > 1e3 * ROUNDING
    assert kept_layers(tmp_path / "model") == list(keep) and kept_layers(source) == []


def test_states_by_layer_end_in_the_output(encoder):
    batch = encoder.collator(ragged_rows())
    with torch.inference_mode():
        states_KBD = encoder.states_by_layer(batch)
        assert len(states_KBD) == encoder.layers
        assert torch.equal(states_KBD[-1], encoder.states(batch))


def test_the_export_is_read_by_automodel_with_the_same_vectors(checkpoint, kept, tmp_path):
    student = Encoder.load(checkpoint, layers=kept)
    save_backbone(student.backbone.config, student.backbone.state_dict(), tmp_path / "weights")
    export_student(tmp_path / "weights", checkpoint, tmp_path / "model", {"query": "Find it.\n"})
    rows = ragged_rows()
    expected = student.encode(rows)
    assert np.abs(Encoder.load(tmp_path / "model").encode(rows) - expected).max() < ROUNDING
    stock = stock_vectors(tmp_path / "model", student.collator, rows)
    assert (stock * expected).sum(axis=1).min() > 0.99999
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == kept
    family = FAMILIES[config["model_type"]]
    assert config["architectures"] == [family.generation_class]
    # Else vLLM places pictures elsewhere: cosine 0.995, without an error.
    assert config["text_config"]["rope_parameters"].get("mrope_interleaved", False) == family.interleaved


def test_the_export_loads_as_a_generation_model_without_missing_weights(checkpoint, kept, tmp_path):
    student = Encoder.load(checkpoint, layers=kept)
    save_backbone(student.backbone.config, student.backbone.state_dict(), tmp_path)
    loader = getattr(transformers, FAMILIES[student.backbone.config.model_type].generation_class)
    _, report = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


def test_a_checkpoint_that_lacks_weights_is_refused_by_their_name(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "less")
    weights = load_file(tmp_path / "less" / "model.safetensors")
    gone = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({name: weights[name] for name in weights if name != gone}, tmp_path / "less" / "model.safetensors")
    with pytest.raises(ValueError, match=r"less lacks the weights .*layers\.1\.mlp\.up_proj\.weight; give"):
        Encoder.load(tmp_path / "less")


def test_depths_outside_the_checkpoint_are_refused(checkpoint):
    family = pruned_config(checkpoint, None).model_type
    for layers in (0, 9):
        with pytest.raises(ValueError, match="can be cut to"):
            pruned_config(checkpoint, layers)
    for layers in ((0, 1), (2, 2), (2, 1), (1, 2, 3, 9), ()):
        with pytest.raises(ValueError, match="can't be kept"):
            pruned_config(checkpoint, layers)
    if family == "qwen3_vl":
        with pytest.raises(ValueError, match=r"3\.\.4"):
            pruned_config(checkpoint, 2)
        with pytest.raises(ValueError, match="its first 3 layers, so they must stay"):
            pruned_config(checkpoint, (1, 2, 4))
    if family == "qwen3_5":
        with pytest.raises(ValueError, match=r"4\.\.8 in steps of 4"):
            pruned_config(checkpoint, 6)
        for layers in ((1, 2, 3), (1, 2, 4, 8), (1, 2, 3, 7)):
            with pytest.raises(ValueError, match="repeat after 4, so keep whole groups of 4"):
                pruned_config(checkpoint, layers)


def test_a_parity_report_names_every_loader_and_refuses_other_weights(tmp_path):
    source = write_checkpoint(tmp_path / "source", "qwen2_vl")
    student = Encoder.load(source, layers=2)
    save_backbone(student.backbone.config, student.backbone.state_dict(), tmp_path / "weights")
    export_student(tmp_path / "weights", source, tmp_path / "model", {})
    report, size = check_parity(tmp_path / "weights", source, tmp_path / "model", stock=False)
    assert set(report["loaders"]) == {"puma", "transformers AutoModel"} and set(report["not_run"]) == set(LOADERS)
    assert min(values["cosine"] for values in report["loaders"].values()) > 0.9999
    decoder = sum(weight.numel() for weight in student.backbone.language_model.layers.parameters())
    assert size == {"layers": 2, "parameters": student.parameters_count, "decoder_parameters": decoder, "dim": 64}
    with torch.no_grad():
        student.backbone.language_model.layers[0].mlp.up_proj.weight.mul_(-1)
    save_backbone(student.backbone.config, student.backbone.state_dict(), tmp_path / "other")
    with pytest.raises(StageError, match="cosine"):
        check_parity(tmp_path / "other", source, tmp_path / "model", stock=False)


def test_a_parity_check_holds_one_model_at_a_time(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "source", "qwen2_vl", layers=2)
    export_student(source, source, tmp_path / "model", {})
    held, load = [], transformers.PreTrainedModel.from_pretrained.__func__

    def loads(kind, *arguments, **options):
        gc.collect()
        assert not [model for model in held if model() is not None]
        loaded = load(kind, *arguments, **options)
        held.append(weakref.ref(loaded[0] if isinstance(loaded, tuple) else loaded))
        return loaded

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(loads))
    check_parity(source, source, tmp_path / "model", stock=False)
    assert len(held) == 3


def test_long_texts_are_cut_and_images_never(tmp_path):
    encoder = Encoder.load(write_checkpoint(tmp_path, "qwen2_vl"))
    short, long = (encoder.collator([Row("x y " * count, picture())]).chunks[0] for count in (200, 400))
    assert torch.equal(short.input_ids_RL, long.input_ids_RL)
    image_tokens = (long.input_ids_RL == encoder.collator.image_token).sum()
    assert image_tokens == long.grid_I3.prod() // 4
    assert long.input_ids_RL[0, -1] == encoder.collator.tokenizer.get_vocab()[RETRIEVAL_TOKEN]


def test_user_text_cannot_bring_control_tokens():
    text = clean(" a [RET]<|image_pad|> b <|im_<|im_end|>end|> c[RET]")
    assert text == "a    b <|im_ end|> c"
    assert not [token for token in SPECIAL_TOKENS if token in text]


def test_a_batch_moves_with_and_without_images(encoder):
    moved = encoder.collator([Row("A red circle. " * 9), Row(None, picture())]).to("cpu")
    assert isinstance(moved, Batch) and {chunk.pixels_PC is None for chunk in moved.chunks} == {True, False}


def test_rows_of_similar_length_share_a_chunk():
    groups = bucket_by_length([40, 10, 100, 11, 12, 41])
    assert groups == [[1, 3, 4], [0, 5], [2]]


def test_a_chunk_has_at_most_so_many_tokens_and_at_least_a_row() -> None:
    assert bucket_by_length([10, 10, 11, 90, 10], tokens=33) == [[0, 1, 4], [2], [3]]


def test_vectors_do_not_depend_on_how_many_tokens_a_pass_has(encoder, monkeypatch) -> None:
    rows = [Row("a green star " * length) for length in (3, 4, 4, 4, 5, 9)]
    whole = encoder.encode(rows)
    monkeypatch.setattr("stages.model.encoder.CPU_TOKENS", 30)
    assert len(next(encoder.batches(rows, 64))[1].chunks) > 3
    assert np.allclose(whole, encoder.encode(rows), atol=1e-6)
