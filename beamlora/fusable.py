"""Conditions under which the fused operation replaces the plain path: only if both certainly give the same result.

The fused operation reads the weights of a layer's submodules and never calls the submodules. It would skip whatever
is attached to a submodule: a hook, a replaced `forward`, pruning, or a parametrization. A layer with any of these
takes the plain path. So does a call that custom autograd functions do not support: vmap, forward-mode
differentiation, tracing, or the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

from beamlora.dropout import keeps_some, rate_of

_FORWARDS = {kind: kind.forward for kind in (nn.Linear, nn.Dropout, nn.Identity)}
"""The module types that a fused layer may consist of, and the original `forward` of each."""

_TENSORS = (Tensor, nn.Parameter)
"""The allowed tensor types. A subclass (DTensor, FakeTensor, a quantized weight) may define its own matrix product."""


def fused_adapter(layer: LoraLinear, fused: Mapping[str, bool], x: Tensor) -> str | None:
    """Return the name of the active adapter if the fused operation can run it on `x`, else None.

    Args:
        layer: the adapted layer.
        fused: the value of the option `fused` for each of the layer's adapters that has rank scores.
        x: the layer's input [..., d_in].
    """
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or not fused.get(names[0], False):
        return None
    name = names[0]
    base, lora_a, lora_b = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
    if _is_transformed() or not all(map(_does_what_its_class_does, (base, lora_a, lora_b, layer.lora_dropout[name]))):
        return None
    tensors = (x, base.weight, lora_a.weight, lora_b.weight, *(() if base.bias is None else (base.bias,)))
    same = all(type(tensor) in _TENSORS and tensor.device == x.device for tensor in tensors)
    if not same or not _has_fused_types(x, base.weight, lora_a.weight, lora_b.weight):
        return None
    if lora_a.weight.shape[0] != layer.r[name]:  # A is padded to a larger rank: the plain path raises an error
        return None
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    return name if frozen and lora_b.bias is None and keeps_some(rate_of(layer.lora_dropout[name])) else None


def _has_fused_types(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Return whether the fused operation supports the types of its tensors.

    The fused operation computes all products in x's type. If autocast would choose another type, the plain path must
    run.
    """
    device = x.device.type
    if device == "meta" or x.layout is not torch.strided or not x.is_floating_point():
        return False
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != x.dtype:
        return False
    return x.dtype == weight.dtype and a.dtype == b.dtype and a.dtype in (x.dtype, torch.float32)


def _is_transformed() -> bool:
    """Return whether torch.compile, tracing, torch.func or forward-mode AD is active, or a global hook exists."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or bool(nn_module._has_any_global_hook())
    )


def _does_what_its_class_does(module: nn.Module) -> bool:
    """Return whether `module` is a supported PyTorch module with its original `forward` and without hooks.

    DeepSpeed's hooks are allowed, because they may be skipped: under ZeRO-3 they fetch a module's parameters, and
    DeepSpeed also fetches these when they are read directly.
    """
    kind = type(module)
    if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind] or "forward" in module.__dict__:
        return False
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return not any(hooks) or all(
        getattr(hook, "__module__", "").startswith("deepspeed.") for group in hooks for hook in group.values()
    )
