"""Dropout that keeps no mask: the mask is drawn again from its seed, in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LEVELS = 2**16
"""On a CPU the probability is a whole number of these parts: 16 random bits decide, and four elements share a 64-bit
number, which makes a mask in a quarter of the time of PyTorch's own."""


def drop(x: Tensor, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """x with elements of it zero and the others to be multiplied by `scale`, and the mask, true where x is kept."""
    if x.is_cuda:  # one kernel, which multiplies by 1 / (1 - rate) as well
        with _seeded(x.device, seed):
            return torch.native_dropout(x, rate, True)
    mask = _mask(x, rate, seed)
    return x * mask, mask


def drop_gradient(gradient: Tensor, rate: float, mask: Tensor) -> Tensor:
    """That of x, from one of what `drop` returned that was multiplied by `scale`; it may be the same memory."""
    if gradient.is_cuda:
        return torch.ops.aten.native_dropout_backward(gradient, mask, 1 / (1 - rate))
    return gradient.mul_(mask)


def scale(x: Tensor, rate: float) -> float:
    """What products of `drop`'s result are still to be multiplied by, where there is less than there is of x."""
    return 1.0 if x.is_cuda else 1 / (1 - round(rate * _LEVELS) / _LEVELS)


def keeps_some(rate: float) -> bool:
    """Whether a rate leaves elements whose scale is a number: not 1, nor what is 1 in 16 bits."""
    return round(rate * _LEVELS) < _LEVELS


def rate_of(dropout: nn.Module) -> float:
    """The share of an adapter's input that is dropped now: 0 unless its Dropout module is in training mode."""
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _mask(x: Tensor, rate: float, seed: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(seed)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    drawn.random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[: x.numel()].view(x.shape) >= round(rate * _LEVELS) - _LEVELS // 2


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """PyTorch's generator of this GPU begins at `seed`, and goes on afterwards as if it had not been used."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    before, offset = generator.initial_seed(), generator.get_offset()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.manual_seed(before)
        generator.set_offset(offset)
