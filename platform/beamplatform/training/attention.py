"""Attention that stays within each example of a packed row.

transformers infers from the position ids where each example begins, and masks all earlier tokens of the row. On a GPU,
attention with such a mask would cost as much as attention over the whole row. There, PyTorch's variable-length
attention (flash attention) receives the boundaries of the examples instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from beamplatform.models.shapes import ModelShapes

NAME = "beamplatform_variable_length"


def check_packing(model: ModelShapes) -> None:
    """Refuse a model whose attention cannot be kept within each example of a packed row.

    Raises:
        ValueError: the message names the model's class.
    """
    if not model.exchangeable_attention:
        raise ValueError(
            f"training.packing: {model.name} has its own attention, which does not support packing; set it to false"
        )


def attend_within_examples(model: Any) -> None:
    """Make a 16-bit transformers model on a GPU attend within each example of a packed row."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **told: Any
) -> tuple[Tensor, None]:
    """Causal attention within each example of one packed row.

    The query is [1, heads, tokens, d]; key and value are the same with as many heads or fewer. Returns the output
    [1, tokens, heads, d], and None in place of attention weights. `told` holds the boundaries of the examples, from
    `beamplatform.data.batches.pack`, and the model's scale of the scores and its sliding window.

    Raises:
        NotImplementedError: the model's attention needs more than this function computes, such as dropout.
    """
    from torch.nn.attention.varlen import varlen_attn

    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if told.get(name) is not None]
    if unsupported := unsupported + ["dropout"] * bool(told.get("dropout")):
        raise NotImplementedError(
            f"training.packing on a GPU does not support attention with {', '.join(unsupported)}; set it to false"
        )
    repeated = query.shape[1] // key.shape[1]
    if repeated > 1:
        key, value = key.repeat_interleave(repeated, dim=1), value.repeat_interleave(repeated, dim=1)
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    ends, longest, window = told["cu_seq_lens_q"], told["max_length_q"], told.get("sliding_window")
    reach = (window - 1 if window else -1, 0)  # visible tokens before (-1: all) and after each token
    output = varlen_attn(query, key, value, ends, ends, longest, longest, scale=told["scaling"], window_size=reach)
    return cast("Tensor", output)[None], None
