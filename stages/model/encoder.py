"""The one encoder behind features, training, indexing and search: a ragged batch of rows in, one vector a row out.

Shapes: B rows, D values of a vector, N rows of a whole call, K layers read.

It calls the stock forward of the checkpoint's own class, so what is trained is what every other loader computes; what
that repeats or throws away is spared in `vision` and `last_layer`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, Qwen2VLImageProcessorPil

from stages.contract.params import cores
from stages.model import compat
from stages.model.inputs import Batch, Chunk, Collator, prefetch
from stages.model.last_layer import shorten_last
from stages.model.prompt import DEFAULT, RETRIEVAL_TOKEN, SETTING, ReadOut, read_out
from stages.model.prune import Layers, load_backbone
from stages.model.rows import Row
from stages.model.vision import geometry, quicken

SETTINGS = "puma.json"
Inputs = tuple[torch.Tensor, ...]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
READERS = 8
"""Threads that decode images at most. A GPU would wait for a single one, and torch's threads on a CPU wait for any."""

CPU_TOKENS = 2048
"""Of a forward pass on a CPU at most. What is larger leaves the caches, and its tensors are fresh pages each time: by
whole batches of 32, long texts and pictures of 300 tokens took a quarter longer."""


@dataclass(frozen=True)
class VisionOutput:
    """What the vision tower gives for a chunk's images, under the names by which the stock forward reads it.

    The tower's other outputs are left out: they are larger and nobody reads them.
    """

    pooler_output: tuple[torch.Tensor, ...]
    """For each row with an image the states that stand for its tokens."""
    deepstack_features: list[tuple[torch.Tensor, ...]] | None
    """Qwen3-VL adds these after its first decoder layers."""

    def before(self, layers: int) -> "VisionOutput":
        """Without what would be added after so many layers and later."""
        if self.deepstack_features is None:
            return self
        return replace(self, deepstack_features=self.deepstack_features[: layers - 1])


class Encoder(nn.Module):
    """A backbone, whole or pruned, read out at the last token of its prompt.

    Args:
        backbone: a stock Qwen-VL base model.
        collator: turns rows into batches for it.
    """

    def __init__(self, backbone: PreTrainedModel, collator: Collator):
        super().__init__()
        self.backbone: Any = backbone  # torch declares its parts as tensors or modules
        self.collator = collator
        shorten_last(self.backbone.language_model)
        quicken(self.backbone.visual)

    @classmethod
    def load(cls, directory: Path, layers: Layers = None, precision: str = "fp32", device: str = "cpu") -> "Encoder":
        """Loads a model directory, keeping some decoder layers.

        Args:
            directory: weights, tokenizer and image processor in the Hugging Face layout, with `puma.json` beside.
            layers: the first so many, or those of these numbers, counted from 1; None keeps all.
            precision: fp32 or bf16 weights.
            device: cpu or cuda.

        Raises:
            ValueError: unknown model family, a depth out of range, or a vocabulary without what the read-out needs.
        """
        directory = Path(directory)
        backbone = load_backbone(directory, layers, PRECISIONS[precision])
        collator = load_collator(directory, backbone.config.text_config.vocab_size, readers_for(device))
        return cls(backbone, collator).to(device).eval()

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
    def decoder_parameters_count(self) -> int:
        """Parameters of the decoder's layers, which is what a token costs: each takes part in a product with it."""
        return sum(parameter.numel() for parameter in self.backbone.language_model.layers.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def freeze_vision(self) -> None:
        """Freezes the vision tower with its merger, and takes it out of the encoder's modules.

        The paper's students learn to read the tower, not to change it. The forward pass still finds it, while
        `parameters()`, `state_dict()` and DeepSpeed do not: ZeRO neither partitions nor gathers what never changes,
        and checkpoints are smaller by it. `vision_weights` gives its weights.
        """
        compat.hide_module(self.backbone, "visual").requires_grad_(False).eval()

    @property
    def vision_is_frozen(self) -> bool:
        """Whether `freeze_vision` has been called."""
        return compat.is_hidden(self.backbone, "visual")

    def vision_weights(self) -> dict[str, torch.Tensor]:
        """The frozen tower's weights under the names that the encoder's state dict gives them; empty while trained."""
        if not self.vision_is_frozen:
            return {}
        return {f"backbone.visual.{name}": weight for name, weight in self.backbone.visual.state_dict().items()}

    def encode_images(self, chunk: Chunk) -> VisionOutput | None:
        """Runs the vision tower on a chunk's images, without graph where it is frozen; None for a chunk of text."""
        if chunk.pixels_PC is None or chunk.grid_I3 is None or chunk.image_J is None:
            return None
        seen_J = chunk.image_J.tolist()  # before the tower: a GPU's host would wait for it here
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_is_frozen):
            output = self.backbone.get_image_features(
                self.collator.cut.values(chunk.pixels_PC),
                chunk.grid_I3,
                return_dict=True,
                **geometry(self.backbone.visual, chunk.grid_I3),
            )
        deepstack = getattr(output, "deepstack_features", None)
        return VisionOutput(
            tuple(output.pooler_output[image] for image in seen_J),
            deepstack and [tuple(features[image] for image in seen_J) for features in deepstack],
        )

    def states(self, batch: Batch, vision: Sequence[VisionOutput | None] | None = None) -> torch.Tensor:
        """Hidden states at the last token after the final norm, [B, D], not normalised: what distillation compares.

        Args:
            batch: the rows.
            vision: for each chunk what `encode_images` gave; None runs the tower now.
        """
        outputs = vision or [None] * len(batch.chunks)
        parts = [self._chunk_states(chunk, output) for chunk, output in zip(batch.chunks, outputs, strict=True)]
        return torch.cat(parts)[batch.place_B]

    def _chunk_states(self, chunk: Chunk, vision: VisionOutput | None = None) -> torch.Tensor:
        """States [R, D]. The tower comes before the token embeddings: under ZeRO-3 all ranks go in one order."""
        vision = vision or self.encode_images(chunk)
        output = self.backbone(
            input_ids=chunk.input_ids_RL,
            position_ids=chunk.position_ids_3RL,
            mm_encoder_outputs={"image": vision.before(len(self.backbone.language_model.layers))} if vision else None,
            use_cache=False,
            read_out=chunk.last_R,
        )
        return _read_out(output.last_hidden_state, chunk)

    def forward(self, batch: Batch, vision: Sequence[VisionOutput | None] | None = None) -> torch.Tensor:
        """`states` as a module call, so that DeepSpeed's hooks run."""
        return self.states(batch, vision)

    def states_by_layer(self, batch: Batch) -> torch.Tensor:
        """States at the last token after each decoder layer and the final norm, [K, B, D], from one forward pass.

        Entry k - 1 is the output of a student of k layers. Hooks keep one row of each layer's output;
        `output_hidden_states=True` would keep all of them.
        """
        states_KBD = torch.cat([self._chunk_states_by_layer(chunk) for chunk in batch.chunks], dim=1)
        return self.backbone.language_model.norm(states_KBD[:, batch.place_B])

    def _chunk_states_by_layer(self, chunk: Chunk) -> torch.Tensor:
        """States [K, R, D] of one chunk, before the final norm."""
        kept: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: Inputs, output: torch.Tensor | Inputs) -> None:
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
            batch_size: rows of a forward pass.
        """
        vectors_ND = np.zeros((len(rows), self.dim), np.float32)
        for start, batch in self.batches(rows, batch_size):
            vectors_BD = nn.functional.normalize(self.states(batch).float(), dim=-1)
            vectors_ND[start : start + batch_size] = vectors_BD.cpu().numpy()
        return vectors_ND

    def batches(self, rows: Sequence[Row], batch_size: int) -> Iterator[tuple[int, Batch]]:
        """The rows in batches on the model's device, each with the number of its first row.

        While a GPU computes a batch, the next is collated. A model on the CPU has all cores already.
        """
        starts, on_cpu = range(0, len(rows), batch_size), self.device.type == "cpu"
        each, tokens = (map, CPU_TOKENS) if on_cpu else (prefetch, 0)
        collated = each(lambda start: self.collator(rows[start : start + batch_size], tokens=tokens), starts)
        for start, batch in zip(starts, collated, strict=True):
            yield start, batch.to(self.device)


def _read_out(states_RLD: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """The states [R, D] at each row's last token, which the last layer gives alone."""
    if states_RLD.shape[1] == 1:
        return states_RLD[:, 0]
    return states_RLD[torch.arange(len(chunk.last_R), device=states_RLD.device), chunk.last_R]


def readers_for(device: str) -> int:
    """Threads that decode images beside a model on `device`."""
    return min(READERS, torch.get_num_threads() if device == "cpu" else cores())


def load_collator(directory: Path, vocabulary: int, readers: int = 1) -> Collator:
    """The collator of a model directory, with the read-out that its settings name.

    `[RET]` is added to tokenizers that lack it, on an unused embedding row, where the read-out ends in it. What a
    tokenizer puts before or behind every text is left out: some loaders ask for it and others don't, and the prompt
    has all that is read.

    Raises:
        ValueError: the tokenizer lacks a token of the read-out, the embedding table has no unused row for `[RET]`, or
            the directory does not say how much of a text is read.
    """
    settings = json.loads((directory / SETTINGS).read_text())
    if "max_text_characters" not in settings:
        raise ValueError(f"{directory} was exported before texts were cut by characters; export it anew")
    prompt = read_out(settings.get(SETTING, DEFAULT))
    tokenizer = _load_tokenizer(directory, prompt, vocabulary)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
    return Collator(tokenizer, image_processor, prompt, settings["max_text_characters"], readers)


def _load_tokenizer(directory: Path, prompt: ReadOut, vocabulary: int) -> Any:
    """See `load_collator`."""
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if tokenizer("")["input_ids"]:
        for setting in ("add_bos_token", "add_eos_token"):
            setattr(tokenizer, setting, False)  # sets its post-processor anew
    lacking = prompt.lacking(tokenizer.get_vocab())
    if RETRIEVAL_TOKEN in lacking:
        lacking.remove(RETRIEVAL_TOKEN)
        new: dict[str, Any] = {"additional_special_tokens": [RETRIEVAL_TOKEN]}
        tokenizer.add_special_tokens(new, replace_extra_special_tokens=False)
    if lacking:
        raise ValueError(f"{directory}: its tokenizer has no {lacking[0]}, which {SETTING}={prompt.name} needs")
    if prompt.token and tokenizer.get_vocab()[prompt.token] >= vocabulary:
        raise ValueError(f"{directory}: the embedding table has {vocabulary} rows and none is free for {prompt.token}")
    return tokenizer
