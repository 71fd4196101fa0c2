"""The loss of one micro-batch, and the choice of the tokens whose logits are computed for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from beamplatform.data.examples import IGNORED
from beamplatform.models.shapes import AFTER_THE_HEAD

if TYPE_CHECKING:
    import torch

LossHead = Literal["counted", "chunked", "all"]
"""The tokens whose logits are computed; the loss is the same.

counted: the tokens that the loss counts. chunked: these tokens, one chunk at a time (PyTorch's linear_cross_entropy).
all: every token.
"""


def summed_loss(engine: Any, batch: Mapping[str, Any], head: LossHead) -> torch.Tensor:
    """Cross-entropy summed over the counted tokens of one micro-batch, as a float32 scalar.

    All entries of `batch` except its labels are the model's input.
    """
    import torch
    from torch.nn import functional

    inputs = {key: value for key, value in batch.items() if key != "labels"}
    targets = batch["labels"][:, 1:]
    if head == "all":
        logits = engine(**inputs).logits[:, :-1].flatten(0, 1)
        return functional.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    counted = targets != IGNORED
    layer = getattr(engine, "module", engine).get_output_embeddings()
    with _only(layer, counted, give=1 if head == "chunked" else None) as states:
        logits = engine(**inputs).logits
    targets = targets[counted]
    if head == "counted" or not len(targets):  # without targets the loss is zero, with a gradient of zero
        return functional.cross_entropy(logits.float()[: len(targets)], targets, reduction="sum")
    options = torch.nn.LinearCrossEntropyOptions()
    loss = functional.linear_cross_entropy(
        states[0], layer.weight, targets, linear_bias=layer.bias, reduction="sum", options=options
    )
    return loss.float()


def check_loss_head(config: Mapping[str, Any], head: LossHead) -> None:
    """Refuse the chunked loss for a model that changes its logits after the output layer.

    Raises:
        ValueError: the message names the entry of the model's configuration that changes them.
    """
    changed = next((name for name in AFTER_THE_HEAD if config[name] not in (None, 1, 1.0)), None)
    if head == "chunked" and changed:
        raise ValueError(f"training.loss_head: chunked is not for models with {changed}; allowed: counted, all")


@contextmanager
def _only(layer: torch.nn.Module, counted: torch.Tensor, *, give: int | None) -> Iterator[list[torch.Tensor]]:
    """Pass only the hidden states of counted tokens to the output layer `layer`, inside this context.

    Args:
        layer: the output layer.
        counted: whether each token counts, [examples, length - 1].
        give: how many of these hidden states the layer gets; None: all.

    Yields:
        A list that holds, once the model was called, the hidden states [counted tokens, hidden].
    """
    states = []

    def select(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> torch.Tensor:
        states.append(arguments[0][:, :-1][counted])
        return states[0][:give]

    handle = layer.register_forward_pre_hook(select)
    try:
        yield states
    finally:
        handle.remove()
