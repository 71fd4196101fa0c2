"""Dropout that stores no mask: the backward pass regenerates the mask from its seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LEVELS = 2**16
"""On a CPU the dropout rate is rounded to a multiple of 1 / _LEVELS, because 16 random bits decide about each element.
Four elements share one random 64-bit number, so drawing a mask takes a quarter of PyTorch's own time."""


def drop(x: Tensor, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return x with the dropped elements set to zero, and the mask, which is true where x is kept.

    The caller must multiply the kept elements, or a product of them, by `scale`.
    """
    if x.is_cuda:  # one kernel, which also multiplies by 1 / (1 - rate): `scale` is then 1
        with _seeded(x.device, seed):
            return torch.native_dropout(x, rate, True)
    mask = _mask(x, rate, seed)
    return x * mask, mask


def drop_gradient(gradient: Tensor, rate: float, mask: Tensor) -> Tensor:
    """Return the gradient with respect to x, given the gradient with respect to the first tensor from `drop`.

    On a CPU this modifies `gradient` in place.
    """
    if gradient.is_cuda:
        return torch.ops.aten.native_dropout_backward(gradient, mask, 1 / (1 - rate))
    return gradient.mul_(mask)


def scale(x: Tensor, rate: float) -> float:
    """Return the factor by which the result of `drop` must still be multiplied.

    Multiplying a product of that result is cheaper, because the product is smaller than x.
    """
    return 1.0 if x.is_cuda else 1 / (1 - round(rate * _LEVELS) / _LEVELS)


def keeps_some(rate: float) -> bool:
    """Return whether the rate is below 1 after rounding to 16 bits, so that `scale` is finite."""
    return round(rate * _LEVELS) < _LEVELS


def rate_of(dropout: nn.Module) -> float:
    """Return the current dropout rate of an adapter's dropout module, which is 0 unless it is in training mode."""
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _mask(x: Tensor, rate: float, seed: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(seed)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    drawn.random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[: x.numel()].view(x.shape) >= round(rate * _LEVELS) - _LEVELS // 2


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed PyTorch's generator of this GPU with `seed` inside the context, and restore its state afterwards."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    before, offset = generator.initial_seed(), generator.get_offset()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.manual_seed(before)
        generator.set_offset(offset)
