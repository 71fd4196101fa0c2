"""Reading and writing weights, moments and gradients, wherever the optimizer keeps them.

A torch optimizer keeps moments beside each parameter. DeepSpeed ZeRO keeps fp32 master weights and moments flat and
sharded over the workers, and the weights of the forward pass as separate copies. Both look the same through
`OptimizerAccess`: each worker reaches its own `Shard` of a parameter without speaking to the others. Whole parameters
(`value`, `read`, `write`, `gradient`) are collective: all workers call them, in the same order.
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
    """What a beam step, a mask or a checkpoint needs of an optimizer.

    sharded: whether a worker holds only a part of each parameter.
    group: the process group that the parts are spread over (None: all processes).
    """

    sharded: bool = False
    group: Any = None

    @abstractmethod
    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the optimizer trains this parameter."""

    @abstractmethod
    def check(self, parameter: nn.Parameter) -> None:
        """Refuse what `shard` would refuse after the first optimizer step.

        Raises:
            TypeError: moments that cannot be copied rank by rank.
        """

    @abstractmethod
    def shard(self, parameter: nn.Parameter) -> Shard:
        """This worker's part, as views. There are no moments before the first optimizer step."""

    @abstractmethod
    def stretches(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """What the inner optimizer steps: each of its tensors with its state (moments and step counts)."""

    def live(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        """The forward weights that this worker holds, as views: stretches of the flattened parameter, each with the
        element it starts at. Of frozen parameters too."""
        yield 0, parameter.data.view(-1)

    def copies(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        """Its forward weights as in `live`, where these are other tensors than the master weights: whoever changes
        the master weights changes these, too."""
        return self.live(parameter)

    def refresh(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Set the whole flattened forward weights, where these are other tensors than the master weights."""
        for start, stretch in self.copies(parameter):
            stretch.copy_(values[start : start + stretch.numel()])

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The whole gradient of the coming optimizer step, the mean over workers. Call after backward."""
        return None if parameter.grad is None else _full_precision(parameter.grad)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """A copy of the whole weights in at least float32, from the master weights where there are such."""
        return self._whole(parameter, [self.shard(parameter).value])[0]

    def read(self, parameter: nn.Parameter) -> ParameterState:
        """A copy of the whole weights and moments, in at least float32."""
        tensors = self.shard(parameter).tensors()
        whole = dict(zip(tensors, self._whole(parameter, list(tensors.values())), strict=True))
        return ParameterState(whole.pop("value"), whole)

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, state: ParameterState) -> None:
        """Set whole weights and moments, the same on every worker. The next forward pass uses the new weights."""
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
    """The access for torch's optimizers, DeepSpeed's (ZeRO 0 to 3), or either inside accelerate's wrapper.

    Raises:
        TypeError: any other object, or a DeepSpeed optimizer whose fp32 master weights are out of reach.
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
    """Any torch optimizer. Every state tensor of the parameter's own shape counts as a moment."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def holds(self, parameter: nn.Parameter) -> bool:
        return any(p is parameter for group in self._optimizer.param_groups for p in group["params"])

    def check(self, parameter: nn.Parameter) -> None:
        check_optimizer(self._optimizer, parameter)

    def shard(self, parameter: nn.Parameter) -> Shard:
        """As in OptimizerAccess.

        Raises:
            TypeError: moments that cannot be copied rank by rank.
        """
        found = moments(self._optimizer, self._optimizer.state.get(parameter, {}), parameter.shape)
        return Shard(0, parameter.detach().view(-1), {name: tensor.view(-1) for name, tensor in found.items()})

    def copies(self, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
        """None: the forward weights are the ones that the optimizer steps."""
        return iter(())

    def stretches(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter, self._optimizer.state[parameter]


class _DeepSpeedAccess(OptimizerAccess):
    """What DeepSpeed's stages share: a torch optimizer over fp32 master weights that are not the forward weights."""

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
        """The shard that lies in `flat` from `offset` on."""
        found = self._moments(flat)
        return Shard(
            start, flat.detach().narrow(0, offset, size), {name: t.narrow(0, offset, size) for name, t in found.items()}
        )

    def _moments(self, flat: Tensor) -> dict[str, Tensor]:
        """The moments of master weights. What has another shape (a compressor's buffers) is no moment.

        Raises:
            TypeError: quantized moments.
        """
        inner = self._optimizer.optimizer
        state = sorted(inner.state.get(flat, {}).items())
        return moments(inner, {n: t for n, t in state if isinstance(t, Tensor) and t.shape == flat.shape}, flat.shape)


class Zero12Access(_DeepSpeedAccess):
    """ZeRO stages 1 and 2: every worker has whole forward weights, and a stretch of the flat master weights."""

    def __init__(self, optimizer: Any, flats: list[Tensor]) -> None:
        super().__init__(optimizer, flats)
        self.group = optimizer.dp_process_group

    def holds(self, parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "_hp_mapping")

    def shard(self, parameter: nn.Parameter) -> Shard:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            # A worker without a part: the moments' names are still those of the others, for their collectives.
            return self._views(self._flats[0], 0, 0, 0)
        there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        return self._views(self._flats[mapping.param_group_index], here.start, here.numel, there.start)


class Zero3Access(_DeepSpeedAccess):
    """ZeRO stage 3: forward and master weights are both sharded, each parameter cut into equal, padded parts."""

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
        found: Any = parameter
        if found.data.numel() == found.ds_numel:  # small parameters stay whole on every worker, beside their parts
            yield 0, found.data.view(-1)
        start, size = self._range(parameter, found.ds_tensor.numel())
        yield start, found.ds_tensor.data.view(-1)[:size]

    def _range(self, parameter: Any, padded: int) -> tuple[int, int]:
        start = min(padded * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
        return start, min(padded, parameter.ds_numel - start)


class MasterCopyAccess(_DeepSpeedAccess):
    """Stage 0 in bf16: nothing is sharded; every parameter has an fp32 master copy on every worker."""

    sharded = False

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, [master for group in optimizer.fp32_groups for master in group])
        live = (p for group in optimizer.fp16_groups for p in group)
        self._masters = {id(p): master for p, master in zip(live, self._flats, strict=True)}

    def holds(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._masters

    def shard(self, parameter: nn.Parameter) -> Shard:
        master = self._masters[id(parameter)]
        found = self._moments(master)
        return Shard(0, master.detach().view(-1), {name: t.view(-1) for name, t in found.items()})

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return OptimizerAccess.gradient(self, parameter)
