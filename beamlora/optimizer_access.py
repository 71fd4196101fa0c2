"""Reading and writing full weights, moments and gradients, wherever the optimizer keeps them.

A torch optimizer keeps moments beside each parameter. DeepSpeed ZeRO keeps fp32 master weights and moments
flat and sharded over the workers, and the weights of the forward pass as separate copies. Both look the same
through `OptimizerAccess`. Under ZeRO every method except `holds` is collective: all workers call it, in the
same order, and all get or pass the same full tensors.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beamlora.state import ParameterState


class OptimizerAccess(Protocol):
    """What a beam step needs of an optimizer. Tensors returned are copies, in at least float32."""

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the optimizer trains this parameter."""

    def value(self, parameter: nn.Parameter) -> Tensor:
        """The weights, from the master copy where there is one."""

    def read(self, parameter: nn.Parameter) -> ParameterState:
        """Weights and moments. There are no moments before the first optimizer step."""

    def write(self, parameter: nn.Parameter, state: ParameterState) -> None:
        """Set weights and moments. The next forward pass uses the new weights."""

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The gradient of the coming optimizer step, the mean over workers. Call after backward."""


def optimizer_access(optimizer: Any) -> OptimizerAccess:
    """The access for torch's optimizers, DeepSpeed's (ZeRO 1 to 3), or either inside accelerate's wrapper.

    Raises:
        TypeError: any other object, or a DeepSpeed optimizer without ZeRO's fp32 master weights.
    """
    if type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    if type(optimizer).__module__.startswith("deepspeed.runtime."):
        return DeepSpeedAccess(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        return TorchAccess(optimizer)
    raise TypeError(
        f"optimizer is a {type(optimizer).__qualname__}: must be a torch.optim.Optimizer "
        "or DeepSpeed's engine.optimizer"
    )


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


class TorchAccess:
    """Any torch optimizer. Every state tensor of the parameter's own shape counts as a moment."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def holds(self, parameter: nn.Parameter) -> bool:
        return any(p is parameter for group in self._optimizer.param_groups for p in group["params"])

    def value(self, parameter: nn.Parameter) -> Tensor:
        return _full_precision(parameter)

    def read(self, parameter: nn.Parameter) -> ParameterState:
        """As in OptimizerAccess.

        Raises:
            TypeError: the optimizer's moments are factored or quantized, so that a rank's share cannot be
            copied.
        """
        moments = self._moments(parameter)
        return ParameterState(self.value(parameter), {name: _full_precision(m) for name, m in moments.items()})

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, state: ParameterState) -> None:
        parameter.copy_(state.value)
        for name, moment in self._moments(parameter).items():
            moment.copy_(state.moments[name])

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return None if parameter.grad is None else _full_precision(parameter.grad)

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        # Tensors of one element are step counts, which a beam step leaves alone.
        state = self._optimizer.state.get(parameter, {})
        tensors = {name: t for name, t in state.items() if isinstance(t, Tensor) and t.numel() > 1}
        for name, tensor in tensors.items():
            if tensor.shape != parameter.shape or not tensor.is_floating_point():
                raise TypeError(
                    f"{type(self._optimizer).__qualname__} keeps {name!r} as {tensor.dtype} "
                    f"{list(tensor.shape)} for a parameter of shape {list(parameter.shape)}: a beam step "
                    "copies moments rank by rank and needs them in that shape (AdamW, SGD with momentum)"
                )
        return tensors


class DeepSpeedAccess:
    """DeepSpeed's ZeRO stages 1, 2 and 3, in float32 or in bf16 with fp32 master weights.

    DeepSpeed's setters change the master weights only: the copies that the forward pass uses stay stale until
    the next optimizer step. `write` therefore refreshes those too.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        # The flat fp32 shards of stage 3, of stages 1 and 2, and of stage 1 in bf16 with fp32 gradients.
        for name in (
            "fp32_partitioned_groups_flat",
            "single_partition_of_fp32_groups",
            "fp32_groups_flat_partition",
        ):
            if hasattr(optimizer, name):
                self._flat_name = name
                return
        raise TypeError(
            f"{type(optimizer).__qualname__} keeps no fp32 master weights that BeamLoRA can reach: "
            "use ZeRO stage 1, 2 or 3 (or stage 0 in float32)"
        )

    def holds(self, parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "_z3_optimizer" if hasattr(parameter, "ds_id") else "_hp_mapping")

    def value(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return _full_precision(safe_get_full_fp32_param(parameter))

    def read(self, parameter: nn.Parameter) -> ParameterState:
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {
            name: _full_precision(safe_get_full_optimizer_state(parameter, name)) for name in self._moment_names()
        }
        return ParameterState(self.value(parameter), moments)

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, state: ParameterState) -> None:
        if hasattr(parameter, "ds_id"):
            self._write_stage_3(parameter, state)
        else:
            self._write_stages_1_2(parameter, state)

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(parameter)
        return None if gradient is None else _full_precision(gradient)

    def _write_stages_1_2(self, parameter: nn.Parameter, state: ParameterState) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, state.value)
        for name, moment in state.moments.items():
            safe_set_full_optimizer_state(parameter, moment, name)
        parameter.data.copy_(state.value)

    def _write_stage_3(self, parameter: nn.Parameter, state: ParameterState) -> None:
        # The full setters fail where a parameter's size is not a multiple of the number of workers: its last
        # shard is padded. The local setters take the padded shard.
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        safe_set_local_fp32_param(parameter, _padded_shard(parameter, state.value))
        for name, moment in state.moments.items():
            safe_set_local_optimizer_state(parameter, _padded_shard(parameter, moment), name)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(state.value)

    def _moment_names(self) -> list[str]:
        # From the flat shard and not from the parameter: under stages 1 and 2 a worker without a share in a
        # parameter knows nothing of its moments, and would leave the others waiting in the collective.
        for shard in getattr(self._optimizer, self._flat_name):
            state = self._optimizer.optimizer.state.get(shard, {})
            names = [name for name, t in state.items() if isinstance(t, Tensor) and t.shape == shard.shape]
            if names:
                return sorted(names)
        return []


def _padded_shard(parameter: Any, full: Tensor) -> Tensor:
    """This worker's share of a ZeRO-3 parameter [shard size], zero behind the parameter's end."""
    size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
    padded = full.new_zeros(size * dist.get_world_size(group))
    padded[: full.numel()] = full.flatten()
    return padded[size * dist.get_rank(group) :][:size]
