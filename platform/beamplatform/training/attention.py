"""Attention within each example of a packed row.

transformers tells from the positions where an example begins, and masks what lies before it. On a GPU such a mask would
cost the attention of the whole row; there PyTorch's variable-length attention (flash attention) is given the boundaries
instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from beamplatform.models.shapes import ModelShapes

NAME = "beamplatform_variable_length"


def check_packing(model: ModelShapes) -> None:
    """Refuse a model whose attention cannot be told where an example begins.

    Raises:
        ValueError: names its class.
    """
    if not model.exchangeable_attention:
        raise ValueError(f"training.packing: {model.name} has attention of its own; set it to false")


def attend_within_examples(model: Any) -> None:
    """Let a model of transformers whose packed rows lie on a GPU, in 16 bits, attend by their boundaries."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **told: Any
) -> tuple[Tensor, None]:
    """Causal: query [1, heads, tokens, d], key and value [1, as many or fewer, tokens, d]; returns [1, tokens, heads,
    d]. What is told comes from `beamplatform.data.batches.pack`, the scale of the scores and the window from the model.

    Raises:
        NotImplementedError: the model's attention is more than this.
    """
    from torch.nn.attention.varlen import varlen_attn

    more = [name for name in ("softcap", "s_aux", "position_bias") if told.get(name) is not None]
    if more := more + ["dropout"] * bool(told.get("dropout")):
        raise NotImplementedError(f"training.packing on a GPU: attention with {', '.join(more)}; set it to false")
    repeated = query.shape[1] // key.shape[1]
    if repeated > 1:
        key, value = key.repeat_interleave(repeated, dim=1), value.repeat_interleave(repeated, dim=1)
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    ends, longest, window = told["cu_seq_lens_q"], told["max_length_q"], told.get("sliding_window")
    reach = (window - 1 if window else -1, 0)  # before a token (-1: all), and after it
    output = varlen_attn(query, key, value, ends, ends, longest, longest, scale=told["scaling"], window_size=reach)
    return cast("Tensor", output)[None], None
