"""Export of adapters that start as a part of the base weights (PiSSA, MiLoRA).

Their frozen weights are W - s B0 A0, where B0 and A0 are the factors at the start. So the trained adapter alone does
not fit the original weights W. The trained weights differ from W by s B A - s B0 A0, which is a LoRA of rank 2 r.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.methods.plain import save_plain_lora

if TYPE_CHECKING:
    import torch

    Factors = tuple[torch.Tensor, torch.Tensor]


def adapter_factors(model: Any) -> dict[str, Factors]:
    """Return copies on the CPU of every layer's A [r, d_in] and B [d_out, r]."""
    return {name: (a.detach().cpu().clone(), b.detach().cpu().clone()) for name, a, b, _ in _layers(model)}


def save_change(model: Any, first: Mapping[str, Factors], folder: Path) -> None:
    """Write the difference between the trained and the original weights as a plain LoRA.

    Args:
        first: the factors with which training started, from `adapter_factors`.
    """
    import torch

    factors = {}
    for name, a, b, scaling in _layers(model):
        a0, b0 = (tensor.to(a.device, torch.float32) for tensor in first[name])
        factors[name] = (torch.cat([a.float() * scaling, a0 * -scaling]), torch.cat([b.float(), b0], dim=1))
    save_plain_lora(factors, base=model.base_model.model, folder=folder)


def _layers(model: Any) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, float]]:
    from peft.tuners.lora import LoraLayer

    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A:
            yield name, layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
