"""Examples in one row, one after the other: nothing is padding, and each example sees itself alone.

transformers tells from the positions where an example begins, and masks what lies before. On a GPU such a mask would
cost the attention of the whole row; there PyTorch's variable-length attention (flash attention) is given the
boundaries instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

ATTENTION = "beamplatform_variable_length"


def boundaries(lengths: Sequence[int], device: str | torch.device) -> dict[str, Any]:
    """What a model is told of the examples [1, sum of lengths] besides its input_ids."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    longest = max(lengths)
    return {
        "position_ids": positions.to(device), "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
        "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip


def attend_by_boundaries(model: Any) -> None:
    """Let a model of transformers on a GPU, in bfloat16 or float16, use PyTorch's variable-length attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    model.set_attn_implementation(ATTENTION)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **told: Any
) -> tuple[Tensor, None]:
    """Causal attention within each example: query [1, heads, tokens, d], key and value [1, fewer heads, tokens, d];
    returns [1, tokens, heads, d]."""
    from torch.nn.attention.varlen import varlen_attn

    repeated = query.shape[1] // key.shape[1]
    if repeated > 1:
        key, value = key.repeat_interleave(repeated, dim=1), value.repeat_interleave(repeated, dim=1)
    ends, longest = told["cu_seq_lens_q"], told["max_length_q"]
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    causal = (-1, 0)
    output = varlen_attn(query, key, value, ends, ends, longest, longest, scale=told["scaling"], window_size=causal)
    return cast(Tensor, output)[None], None
