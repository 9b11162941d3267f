"""The one encoder behind features, training, indexing and search: a ragged batch of rows in, one vector a row out.

Shapes: B rows, D values of a vector, N rows of a whole call, K layers read.

It calls the stock forward of the checkpoint's own class, so what is trained is what every other loader computes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from stages.model.inputs import Batch, Chunk, Collator, Row
from stages.model.prompt import RETRIEVAL_TOKEN
from stages.model.prune import load_backbone

__all__ = ["Batch", "Encoder", "Row"]

SETTINGS = "puma.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Encoder(nn.Module):
    """A backbone, whole or pruned, read out at `[RET]`.

    Args:
        backbone: a stock Qwen-VL base model.
        collator: turns rows into batches for it.
    """

    def __init__(self, backbone: Any, collator: Collator):
        super().__init__()
        self.backbone = backbone
        self.collator = collator

    @classmethod
    def load(
        cls, directory: Path, layers: int | None = None, precision: str = "fp32", device: str = "cpu"
    ) -> "Encoder":
        """Loads a model directory, keeping the first `layers` decoder layers.

        Args:
            directory: weights, tokenizer and image processor in the Hugging Face layout, with `puma.json` beside.
            layers: depth to keep; None keeps all.
            precision: fp32 or bf16 weights.
            device: cpu or cuda.

        Raises:
            ValueError: unknown model family, a depth out of range, or no room for `[RET]` in the vocabulary.
        """
        directory = Path(directory)
        backbone = load_backbone(directory, layers, PRECISIONS[precision]).to(device)
        return cls(backbone, load_collator(directory, backbone.config.text_config.vocab_size)).eval()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.backbone.config.text_config.hidden_size

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.backbone.config.text_config.num_hidden_layers

    @property
    def parameters_count(self) -> int:
        """Parameters of vision tower, embeddings and decoder; there is no language-model head."""
        return sum(parameter.numel() for parameter in self.backbone.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def states(self, batch: Batch) -> torch.Tensor:
        """Hidden states at `[RET]` after the final norm, [B, D], not normalised: what distillation compares."""
        return torch.cat([self._chunk_states(chunk) for chunk in batch.chunks])[batch.place_B]

    def _chunk_states(self, chunk: Chunk) -> torch.Tensor:
        output = self.backbone(
            input_ids=chunk.input_ids_RL,
            position_ids=chunk.position_ids_3RL,
            pixel_values=chunk.pixels_PC,
            image_grid_thw=chunk.grid_I3,
            use_cache=False,
        )
        return _read_out(output.last_hidden_state, chunk)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The states of a batch, [B, D]; a module call so that DeepSpeed's hooks run."""
        return self.states(batch)

    def states_by_layer(self, batch: Batch, normed: bool) -> torch.Tensor:
        """States at `[RET]` after each decoder layer, [K, B, D], from one forward pass.

        Hooks keep one row of each layer's output; `output_hidden_states=True` would keep all of them.

        Args:
            normed: apply the final norm to every layer, which makes entry k - 1 the output of a student of k layers.
        """
        states_KBD = torch.cat([self._chunk_states_by_layer(chunk) for chunk in batch.chunks], dim=1)
        states_KBD = states_KBD[:, batch.place_B]
        return self.backbone.language_model.norm(states_KBD) if normed else states_KBD

    def _chunk_states_by_layer(self, chunk: Chunk) -> torch.Tensor:
        """Raw states [K, R, D] of one chunk."""
        kept: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kept.append(_read_out(output[0] if isinstance(output, tuple) else output, chunk))

        hooks = [layer.register_forward_hook(keep) for layer in self.backbone.language_model.layers]
        try:
            self._chunk_states(chunk)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(kept)

    @torch.inference_mode()
    def encode(self, rows: Sequence[Row], batch_size: int = 64) -> np.ndarray:
        """Vectors of unit length, float32 [N, D], in the order of `rows`.

        Args:
            rows: texts, images, or both.
            batch_size: rows that are in memory at once.
        """
        vectors_ND = np.zeros((len(rows), self.dim), np.float32)
        for start in range(0, len(rows), batch_size):
            batch = self.collator(rows[start : start + batch_size]).to(self.device)
            vectors_BD = nn.functional.normalize(self.states(batch).float(), dim=-1)
            vectors_ND[start : start + batch_size] = vectors_BD.cpu().numpy()
        return vectors_ND


def _read_out(states_RLD: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """The states [R, D] at `[RET]`, each row's last token."""
    return states_RLD[torch.arange(len(chunk.last_R), device=states_RLD.device), chunk.last_R]


def load_collator(directory: Path, vocabulary: int) -> Collator:
    """The collator of a model directory; `[RET]` is added to tokenizers that lack it, on an unused embedding row.

    Raises:
        ValueError: the embedding table has no unused row for `[RET]`.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if RETRIEVAL_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [RETRIEVAL_TOKEN]}, replace_extra_special_tokens=False
        )
    if tokenizer.convert_tokens_to_ids(RETRIEVAL_TOKEN) >= vocabulary:
        raise ValueError(
            f"{directory}: the embedding table has {vocabulary} rows and none is free for {RETRIEVAL_TOKEN}"
        )
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
    settings = json.loads((directory / SETTINGS).read_text())
    return Collator(tokenizer, image_processor, settings["max_text_tokens"])
