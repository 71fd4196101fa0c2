"""MiLoRA (Wang et al. 2024, arXiv 2406.09044): LoRA that starts in the minor singular components of the weights.

    from beamplatform.baselines.milora import get_milora_model

    model = get_milora_model(base_model, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))

The singular value decomposition W = U S V^T is split into principal and minor components, W = W_p + W_m, where
W_m = U_m S_m V_m^T holds the r smallest singular values. The adapter starts as W_m, with B = U_m sqrt(S_m) and
A = sqrt(S_m) V_m^T. Here S is divided by the scaling, so that scaling * B A = W_m. W_p replaces W as the frozen weight.

Two defaults apply where the caller leaves the choice to the method: lora_alpha = r, as in PiSSA, which is MiLoRA's
counterpart, and a decomposition in float32. In bfloat16 the split is exact up to the rounding of W_p.
"""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn


def get_milora_model(
    base_model: nn.Module,
    config: LoraConfig,
    adapter_name: str = "default",
    *,
    device: torch.device | str | None = None,
) -> PeftModel:
    """Put an adapter of minor components into `base_model`, in place, and return PEFT's model around it.

    The base weights become W - scaling * B A. The model computes the same function as before, up to rounding in the
    type of the weights.

    Args:
        base_model: a model with floating-point weights, not quantized. The weights may be sharded as transformers does
            under ZeRO-3, but in no other way.
        config: PEFT's configuration. Rank, alpha, dropout and target modules are used, `init_lora_weights` is ignored.
        device: where the singular value decompositions run; None = where the weights are. A GPU is many times faster.

    Raises:
        ValueError: the configuration uses DoRA, which would scale the principal components too; a layer is not linear;
            or the rank is above a layer's smaller side.
    """
    if config.use_dora:
        raise ValueError("use_dora=True: MiLoRA is an initialisation of plain LoRA")
    config = copy.deepcopy(config)
    config.init_lora_weights = True
    model = get_peft_model(base_model, config, adapter_name=adapter_name)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and adapter_name in layer.r:
            with gather_params_ctx(layer.get_base_layer().parameters()):  # ZeRO-3 keeps the values of worker 0
                _start_in_minor_components(name, layer, adapter_name, device)
    return model


def minor_components(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Compute the r smallest singular components of a weight [d_out, d_in] as B = U sqrt(S) and A = sqrt(S) V^T.

    Returns:
        B [d_out, r] and A [r, d_in] in at least float32. B A is the minor part of the weight.

    Raises:
        ValueError: r is above the smaller side of the weight.
    """
    if r > min(weight.shape):
        raise ValueError(f"r={r}: a weight of shape {list(weight.shape)} has {min(weight.shape)} singular components")
    whole = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    u, s, vt = torch.linalg.svd(whole, full_matrices=False)  # in falling order of singular values
    root = s[-r:].sqrt()
    return u[:, -r:] * root, root[:, None] * vt[-r:]


@torch.no_grad()
def _start_in_minor_components(
    name: str, layer: LoraLayer, adapter_name: str, device: torch.device | str | None
) -> None:
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or adapter_name not in layer.lora_A:
        raise ValueError(f"layer {name!r} is a {type(base).__name__}: MiLoRA adapts linear layers")
    transposed = bool(getattr(layer, "fan_in_fan_out", False))  # transformers' Conv1D
    matrix = weight.T if transposed else weight
    scaling = layer.scaling[adapter_name]
    b, a = minor_components(matrix.to(device or weight.device), layer.r[adapter_name])
    residual = matrix.to(b) - b @ a
    # Each factor is divided by the square root of the scaling, so that scaling * B A is the minor part.
    for factor, value in ((layer.lora_B, b), (layer.lora_A, a)):
        factor[adapter_name].weight.copy_(value / scaling**0.5)
    weight.copy_(residual.T if transposed else residual)
