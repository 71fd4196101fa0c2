"""Reading and writing weights, moments and gradients, wherever the optimizer keeps them.

A torch optimizer keeps moments for each parameter. DeepSpeed ZeRO keeps fp32 master weights and moments flattened and
sharded over the workers, and keeps the weights of the forward pass as separate copies. `OptimizerAccess` is one
interface to both. Each worker reaches its own `Shard` of a parameter without communication. The methods for whole
parameters (`value`, `read`, `write`, `gradient`) are collective: all workers must call them in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beamlora.optimizer_check import check_optimizer, moments
from beamlora.state import ParameterState, Shard
from beamlora.workers import join_parts


class OptimizerAccess(ABC):
    """Access to an optimizer's weights, moments and gradients, for beam steps, masks and checkpoints.

    Attributes:
        sharded: whether a worker holds only a part of each parameter.
        group: the process group over which the parameters are sharded (None: all processes).
    """

    sharded: bool = False
    group: Any = None

    @abstractmethod
    def holds(self, parameter: nn.Parameter) -> bool:
        """Return whether the optimizer trains this parameter."""

    @abstractmethod
    def check(self, parameter: nn.Parameter) -> None:
        """Check that the parameter's moments can be copied rank by rank.

        `shard` raises the same error, but only after the first optimizer step. This method finds it before training.

        Raises:
            TypeError: the moments cannot be copied rank by rank.
        """

    @abstractmethod
    def shard(self, parameter: nn.Parameter) -> Shard:
        """Return this worker's part of the parameter, as views. It has no moments before the first optimizer step."""

    @abstractmethod
    def stretches(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield each tensor that the inner optimizer updates, with its state (moments and step counts)."""

    def live(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        """Yield the forward weights that this worker holds, as 1-dimensional views of pieces of the parameter.

        Each piece comes with the index of its first element in the flattened parameter. This also works for frozen
        parameters.
        """
        yield 0, parameter.data.view(-1)

    def copies(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        """Yield the pieces of `live` if the forward weights are separate from the master weights, else nothing.

        Code that changes the master weights must also change these copies.
        """
        return self.live(parameter)

    def refresh(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Set the forward weights from the whole flattened `values`, if they are separate from the master weights."""
        for start, piece in self.copies(parameter):
            piece.copy_(values[start : start + piece.numel()])

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the whole gradient for the next optimizer step, averaged over the workers, or None.

        Call this after the backward pass. The gradient is in at least float32.
        """
        return None if parameter.grad is None else _full_precision(parameter.grad)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """Return a copy of the whole weights in at least float32, taken from the master weights if they exist."""
        return self._whole(parameter, [self.shard(parameter).value])[0]

    def read(self, parameter: nn.Parameter) -> ParameterState:
        """Return a copy of the whole weights and moments, in at least float32."""
        tensors = self.shard(parameter).tensors()
        whole = dict(zip(tensors, self._whole(parameter, list(tensors.values())), strict=True))
        return ParameterState(whole.pop("value"), whole)

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, state: ParameterState) -> None:
        """Set the weights and moments from `state`, which must be the same on every worker.

        The next forward pass uses the new weights.
        """
        shard, whole = self.shard(parameter), state.tensors()
        for name, tensor in shard.tensors().items():
            tensor.copy_(shard.of(whole[name]))
        self.refresh(parameter, state.value.flatten())

    def _whole(self, parameter: nn.Parameter, parts: list[Tensor]) -> list[Tensor]:
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if not self.sharded:
            return [_full_precision(part).view(shape) for part in parts]
        shard = self.shard(parameter)
        whole = torch.zeros(len(parts), torch.Size(shape).numel(), dtype=torch.float32, device=parameter.device)
        for row, part in zip(whole, parts, strict=True):
            shard.of(row).copy_(part)
        return [row.view(shape) for row in join_parts(whole, self.group)]


def optimizer_access(optimizer: Any) -> OptimizerAccess:
    """Return the access to a torch or DeepSpeed optimizer (ZeRO 0 to 3). Accelerate's wrapper may contain either.

    Raises:
        TypeError: `optimizer` is any other object, or a DeepSpeed optimizer without accessible fp32 master weights.
    """
    if type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    if type(optimizer).__module__.startswith("deepspeed.runtime."):
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            return Zero3Access(optimizer)
        if hasattr(optimizer, "fp32_groups") and hasattr(optimizer, "fp16_groups"):
            return MasterCopyAccess(optimizer)
        for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(optimizer, name):
                return Zero12Access(optimizer, getattr(optimizer, name))
        raise TypeError(
            f"{type(optimizer).__qualname__} keeps no fp32 master weights that BeamLoRA can reach: "
            "use ZeRO stage 0, 1, 2 or 3 with a torch optimizer"
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        return TorchAccess(optimizer)
    raise TypeError(
        f"optimizer is a {type(optimizer).__qualname__}: must be a torch.optim.Optimizer "
        "or DeepSpeed's engine.optimizer"
    )


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


class TorchAccess(OptimizerAccess):
    """Access to a torch optimizer. All tensors in a parameter's state are moments, except step counts."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def holds(self, parameter: nn.Parameter) -> bool:
        return any(p is parameter for group in self._optimizer.param_groups for p in group["params"])

    def check(self, parameter: nn.Parameter) -> None:
        check_optimizer(self._optimizer, parameter)

    def shard(self, parameter: nn.Parameter) -> Shard:
        """Return the whole parameter and its moments, as views.

        Raises:
            TypeError: the moments cannot be copied rank by rank.
        """
        by_name = moments(self._optimizer, self._optimizer.state.get(parameter, {}), parameter.shape)
        return Shard(0, parameter.detach().view(-1), {name: moment.view(-1) for name, moment in by_name.items()})

    def copies(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        """Yield nothing: the optimizer updates the forward weights themselves."""
        return iter(())

    def stretches(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter, self._optimizer.state[parameter]


class _DeepSpeedAccess(OptimizerAccess):
    """Base class for DeepSpeed's stages, in which a torch optimizer updates separate fp32 master weights."""

    sharded = True

    def __init__(self, optimizer: Any, flats: list[Tensor]) -> None:
        self._optimizer = optimizer
        self._flats = flats

    def check(self, parameter: nn.Parameter) -> None:
        check_optimizer(self._optimizer.optimizer, max(self._flats, key=Tensor.numel))

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(parameter)
        return None if gradient is None else _full_precision(gradient)

    def stretches(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for flat in self._flats:
            yield flat, self._optimizer.optimizer.state[flat]

    def _views(self, flat: Tensor, offset: int, size: int, start: int) -> Shard:
        """Return the shard whose `size` elements begin at `offset` in `flat`, and at `start` in the parameter."""
        by_name = self._moments(flat)
        return Shard(
            start,
            flat.detach().narrow(0, offset, size),
            {name: moment.narrow(0, offset, size) for name, moment in by_name.items()},
        )

    def _moments(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the moments of flattened master weights, by name.

        State tensors of another shape, such as a compressor's buffers, are no moments.

        Raises:
            TypeError: the moments are quantized.
        """
        inner = self._optimizer.optimizer
        state = sorted(inner.state.get(flat, {}).items())
        return moments(inner, {n: t for n, t in state if isinstance(t, Tensor) and t.shape == flat.shape}, flat.shape)


class Zero12Access(_DeepSpeedAccess):
    """ZeRO stages 1 and 2: every worker has the whole forward weights, and a part of the flattened master weights."""

    def __init__(self, optimizer: Any, flats: list[Tensor]) -> None:
        super().__init__(optimizer, flats)
        self.group = optimizer.dp_process_group

    def holds(self, parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "_hp_mapping")

    def shard(self, parameter: nn.Parameter) -> Shard:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            # This worker holds no part of the parameter. Its empty shard still needs the names of the moments, because
            # collectives need the same names on all workers.
            return self._views(self._flats[0], 0, 0, 0)
        in_parameter, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
        return self._views(self._flats[mapping.param_group_index], in_flat.start, in_flat.numel, in_parameter.start)


class Zero3Access(_DeepSpeedAccess):
    """ZeRO stage 3: forward and master weights are both sharded. Each parameter is cut into equal, padded parts."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, optimizer.fp32_partitioned_groups_flat)
        self.group = optimizer.dp_process_group

    def holds(self, parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "_z3_optimizer")

    def shard(self, parameter: nn.Parameter) -> Shard:
        optimizer: Any = self._optimizer
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start, size = self._range(parameter, padded)
        return self._views(self._flats[group], offset, size, start)

    def live(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        sharded: Any = parameter
        if sharded.data.numel() == sharded.ds_numel:  # every worker also keeps a whole copy of small parameters
            yield 0, sharded.data.view(-1)
        start, size = self._range(parameter, sharded.ds_tensor.numel())
        yield start, sharded.ds_tensor.data.view(-1)[:size]

    def _range(self, parameter: Any, padded: int) -> tuple[int, int]:
        start = min(padded * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
        return start, min(padded, parameter.ds_numel - start)


class MasterCopyAccess(_DeepSpeedAccess):
    """Stage 0 in bf16: nothing is sharded, and every worker has an fp32 master copy of every parameter."""

    sharded = False

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, [master for group in optimizer.fp32_groups for master in group])
        live = (p for group in optimizer.fp16_groups for p in group)
        self._masters = {id(p): master for p, master in zip(live, self._flats, strict=True)}

    def holds(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._masters

    def shard(self, parameter: nn.Parameter) -> Shard:
        master = self._masters[id(parameter)]
        by_name = self._moments(master)
        return Shard(0, master.detach().view(-1), {name: moment.view(-1) for name, moment in by_name.items()})

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return OptimizerAccess.gradient(self, parameter)
