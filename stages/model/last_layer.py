"""The last decoder layer, computed only for the token of each row that is read.

Shapes: R rows of a chunk, L tokens of its longest row, D values of a state, H heads of E values each.

A row's vector is the state at its last token after the last layer, and nothing reads that layer's states at other
tokens. Of these it needs keys and values; queries, attention, its output, MLP and final norm are computed for one
token a row. With keys and values shared by groups of heads that spares nine tenths of a layer and more: of a student
of two layers nearly half. What is left out had no part in the vector, so its gradient was zero and both are as before.

The stock forward of the language model still runs: it passes what it does not know on to its layers, `read_out` too.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half


def shorten_last(language_model: Any) -> None:
    """Lets the layers of a language model take `read_out`, the place [R] in each row that is read after the last.

    One with linear attention in some of its layers stays as it is: its full attention is another, and the last of its
    layers is at most one in four.
    """
    if not all(hasattr(layer, "self_attn") for layer in language_model.layers):
        return
    for layer in language_model.layers:
        if not isinstance(layer, ReadOutLayer):
            layer.__class__ = _reading(layer.__class__)


@cache
def _reading(stock: type[nn.Module]) -> type[nn.Module]:
    return type(f"ReadOut{stock.__name__}", (ReadOutLayer, stock), {})


class ReadOutLayer(nn.Module):
    """What a stock decoder layer becomes. As the last of its model it gives [R, 1, D] where `read_out` is given."""

    self_attn: Any
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, read_out: torch.Tensor | None = None,
                **options: Any) -> torch.Tensor:  # fmt: skip
        """The stock forward, or as the last layer with `read_out` that of these tokens alone."""
        is_last = self.self_attn.layer_idx == self.self_attn.config.num_hidden_layers - 1
        if read_out is None or not is_last:
            return super().forward(hidden_states, *arguments, **options)
        read_R1D = hidden_states[torch.arange(len(read_out), device=read_out.device), read_out, None]
        read_R1D = read_R1D + self._attend(self.input_layernorm(hidden_states), read_out, **options)
        return read_R1D + self.mlp(self.post_attention_layernorm(read_R1D))

    def _attend(self, states_RLD: torch.Tensor, last_R: torch.Tensor, *, position_embeddings: Any,
                attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor:  # fmt: skip
        """What attention adds to the states [R, 1, D] that are read."""
        attention, row_R = self.self_attn, torch.arange(len(last_R), device=last_R.device)
        cos_RLE, sin_RLE = position_embeddings
        query_RH1E = _heads(attention, "q", states_RLD[row_R, last_R, None])
        key_RHLE, value_RHLE = (_heads(attention, name, states_RLD) for name in "kv")
        output_R1HE = sdpa_attention_forward(
            attention,
            _turned(query_RH1E, cos_RLE[row_R, last_R, None], sin_RLE[row_R, last_R, None]),
            _turned(key_RHLE, cos_RLE, sin_RLE),
            value_RHLE,
            _seen(attention_mask, last_R, row_R, states_RLD.shape[1]),
            dropout=attention.attention_dropout if self.training else 0.0,
            scaling=attention.scaling,
        )[0]
        return attention.o_proj(output_R1HE.flatten(2))


def _heads(attention: Any, name: str, states_RLD: torch.Tensor) -> torch.Tensor:
    """Queries, keys or values [R, H, L, E]; Qwen3 norms the first two."""
    heads_RLHE = getattr(attention, f"{name}_proj")(states_RLD).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (norm(heads_RLHE) if norm else heads_RLHE).transpose(1, 2)


def _turned(heads_RHLE: torch.Tensor, cos_RLE: torch.Tensor, sin_RLE: torch.Tensor) -> torch.Tensor:
    """Rotary positions."""
    return heads_RHLE * cos_RLE[:, None] + rotate_half(heads_RHLE) * sin_RLE[:, None]


def _seen(mask: torch.Tensor | None, last_R: torch.Tensor, row_R: torch.Tensor, length: int) -> torch.Tensor:
    """Which tokens each read one sees [R, 1, 1, L]: those up to its own, or its line of the stock mask."""
    if mask is None:
        return (torch.arange(length, device=last_R.device) <= last_R[:, None])[:, None, None]
    return mask.expand(len(last_R), -1, -1, -1)[row_R, :, last_R, None]
