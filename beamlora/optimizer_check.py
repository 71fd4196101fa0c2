"""Checks before training that a beam step supports the optimizer's moments and the sharding of the parameters."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], shape: torch.Size) -> dict[str, Tensor]:
    """Return the moments, by name, from the optimizer state of a parameter of this shape.

    All tensors in the state are moments, except step counts, which are 0-dimensional.

    Raises:
        TypeError: a moment is factored or quantized, so that it cannot be copied rank by rank.
    """
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor) and (t.ndim > 0 or t.numel() > 1)}
    for name, tensor in tensors.items():
        if tensor.shape != shape or not tensor.is_floating_point() or type(tensor) not in (Tensor, nn.Parameter):
            raise TypeError(
                f"{type(optimizer).__qualname__} keeps {name!r} as {_kind(tensor)} {list(tensor.shape)} for a "
                f"parameter of shape {list(shape)}: a beam step copies moments rank by rank and needs them in that "
                "shape as floating-point numbers (AdamW, SGD with momentum)"
            )
    return tensors


def check_optimizer(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Check that the moments that the optimizer keeps for a parameter can be copied rank by rank.

    If the optimizer has no state for the parameter yet, a copy of the optimizer takes one step on a stand-in parameter.
    An optimizer that cannot do this passes the check; its moments are then checked when they are read.

    Raises:
        TypeError: the moments cannot be copied rank by rank, or are spread over the workers.
    """
    if type(optimizer).__module__.startswith("torch.distributed."):
        raise TypeError(
            f"{type(optimizer).__qualname__} spreads its moments over the workers, out of a beam step's reach: "
            "shard with DeepSpeed ZeRO 1 to 3, or give each worker a whole optimizer"
        )
    state = optimizer.state.get(parameter) or _state_after_a_step(optimizer, parameter)
    moments(optimizer, state, parameter.shape)


def check_whole(layer: str, parameters: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Check that the parameters of an adapter in one layer are either whole or sharded by ZeRO.

    Args:
        layer: the layer's name, for the error message.
        parameters: each parameter by name, with the shape that it must have.

    Raises:
        ValueError: a parameter is sharded in another way.
    """
    for name, (parameter, shape) in parameters.items():
        if type(parameter) is nn.Parameter and tuple(getattr(parameter, "ds_shape", parameter.shape)) == shape:
            continue
        raise ValueError(
            f"layer {layer!r}: {name} is a {type(parameter).__name__} of shape {list(parameter.shape)}, not the whole "
            f"{list(shape)}: BeamSearch does not reach parameters that FSDP or tensor parallelism has sharded "
            "(use DeepSpeed ZeRO 1 to 3, or DistributedDataParallel)"
        )


def _state_after_a_step(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """Return the state that a copy of `optimizer` keeps after one step on zeros; empty if it cannot take this step."""
    if hasattr(type(optimizer), "__del__"):  # deleting the copy would release what it shares with the original
        return {}
    stand_in = nn.Parameter(torch.zeros_like(parameter))
    stand_in.grad = torch.zeros_like(stand_in)
    options = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    copied = object.__new__(type(optimizer))
    copied.__dict__.update(optimizer.__dict__)
    copied.__dict__.pop("step", None)  # a learning-rate scheduler's wrapper, which counts calls
    copied.param_groups = [{**options, "params": [stand_in]}]
    copied.state = defaultdict(dict)
    copied._optimizer_step_pre_hooks, copied._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    try:
        copied.step()
    except Exception:
        return {}
    return copied.state.get(stand_in, {})


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype) if type(tensor) in (Tensor, nn.Parameter) else type(tensor).__name__
