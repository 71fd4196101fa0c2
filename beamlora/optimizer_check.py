"""Refuses, before training starts, what a beam step cannot work on: moments without ranks, and sharded parameters."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], shape: torch.Size) -> dict[str, Tensor]:
    """The moments in the state of a parameter of this shape: all its tensors but step counts, which have one element.

    Raises:
        TypeError: a moment that is factored or quantized, so that a rank's share of it cannot be copied.
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
    """Find out what the optimizer will keep for a parameter, from its state or by a step of a copy on a stand-in.

    An optimizer that cannot step a single parameter by itself is not judged here: it is where its moments are read.

    Raises:
        TypeError: moments that cannot be copied rank by rank, or that are spread over the workers.
    """
    if type(optimizer).__module__.startswith("torch.distributed."):
        raise TypeError(
            f"{type(optimizer).__qualname__} spreads its moments over the workers, out of a beam step's reach: "
            "shard with DeepSpeed ZeRO 1 to 3, or give each worker a whole optimizer"
        )
    state = optimizer.state.get(parameter) or _state_after_a_step(optimizer, parameter)
    moments(optimizer, state, parameter.shape)


def check_whole(layer: str, parameters: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Check that an adapter's parameters, given with the shapes that they must have, are whole, or sharded by ZeRO.

    Raises:
        ValueError: they are sharded in another way.
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
    """The state that a copy of `optimizer` keeps for zeros of this shape; empty where it cannot step them."""
    if hasattr(type(optimizer), "__del__"):  # the copy's end would take from the original what both use
        return {}
    stand_in = nn.Parameter(torch.zeros_like(parameter))
    stand_in.grad = torch.zeros_like(stand_in)
    options = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    copied = object.__new__(type(optimizer))
    copied.__dict__.update(optimizer.__dict__)
    copied.__dict__.pop("step", None)  # a learning-rate schedule's, which counts the calls
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
