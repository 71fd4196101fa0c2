"""Merging an adapter into its base weights and starting it again, under any optimizer that `beamlora` can reach."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from beamlora.fragments import Fragment, Fragments
from beamlora.optimizer_access import OptimizerAccess, optimizer_access
from beamlora.state import ParameterState
from beamplatform.baselines.relora.moments import prune_moments

Moments = Literal["largest", "random"]
PRUNE: dict[Moments, float] = {"largest": 0.9, "random": 0.999}
"""The share of the moments that a restart sets to zero, by how they are chosen (the authors' defaults)."""


@dataclass(frozen=True)
class _Layer:
    """One adapted layer; whole shapes, whatever is sharded."""

    weight: nn.Parameter
    transposed: bool
    scaling: float
    parameters: tuple[nn.Parameter, nn.Parameter]
    shapes: tuple[tuple[int, int], tuple[int, int]]


class ReLora:
    """Merges and restarts one LoRA adapter. Call `step` after every optimizer step; collective on all workers.

    The base weights change at every merge, and checkpoints of adapters do not hold them. So the factors of each merge
    are kept (on the CPU, each worker its shard), and `load_state_dict` merges them again in their order: with equal
    numbers of workers the weights are the same to the bit.

    Args:
        model: a PEFT model with a plain LoRA adapter, bare or inside DeepSpeed's engine.
        optimizer: torch's or DeepSpeed's (ZeRO 0 to 3).
        restarts: the numbers of optimizer steps after which it merges, see `equal_cycles`.
        seed: of what is drawn at a restart; the same on every worker.
        moments: which elements of the adapter's moments a restart keeps: the largest by magnitude, or random ones.
        prune: the share set to zero; None = the authors' default, see PRUNE.

    Raises:
        ValueError: the model has no such adapter, or the optimizer does not train it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        restarts: Sequence[int],
        *,
        seed: int = 0,
        moments: Moments = "largest",
        prune: float | None = None,
        adapter_name: str = "default",
    ) -> None:
        self._access: OptimizerAccess = optimizer_access(optimizer)
        self._layers = dict(_adapted_layers(model, adapter_name))
        if not self._layers:
            raise ValueError(f"the model has no LoRA adapter {adapter_name!r}")
        for name, layer in self._layers.items():
            if not all(p.requires_grad and self._access.holds(p) for p in layer.parameters):
                raise ValueError(f"layer {name!r}: adapter {adapter_name!r} is not trained by this optimizer")
        self.restarts = tuple(restarts)
        self.seed = seed
        self.moments = moments
        self.prune = PRUNE[moments] if prune is None else prune
        self._step = 0
        self._merged: list[dict[str, Fragment]] = []

    @property
    def merges(self) -> int:
        """How many adapters are in the base weights by now."""
        return len(self._merged)

    def step(self) -> bool:
        """Count one optimizer step; whether it was followed by a merge and restart."""
        self._step += 1
        if self._step not in self.restarts:
            return False
        generator = _restart_generator(self.seed, self._step)
        kept: dict[str, Fragment] = {}
        for name, layer in self._layers.items():
            for kind, parameter in zip("ab", layer.parameters, strict=True):
                shard = self._access.shard(parameter)
                kept[f"{name}/{kind}"] = (shard.start, shard.value.to("cpu", copy=True))
            a, b = (self._access.read(parameter) for parameter in layer.parameters)
            self._merge(layer, a.value, b.value)
            redrawn = nn.init.kaiming_uniform_(torch.empty(layer.shapes[0]), a=math.sqrt(5), generator=generator)
            for parameter, state, value in (
                (layer.parameters[0], a, redrawn.to(a.value)),
                (layer.parameters[1], b, torch.zeros_like(b.value)),
            ):
                draw = torch.rand(value.shape, generator=generator) if self.moments == "random" else None
                pruned = prune_moments(state.moments, self.prune, draw)
                self._access.write(parameter, ParameterState(value, pruned))
        self._merged.append(kept)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: {"step": int, "merges": int, "merged": {name: (start, stretch)}}; the last is this
        worker's part of the factors of every merge."""
        parts = {f"{number}/{key}": part for number, kept in enumerate(self._merged) for key, part in kept.items()}
        return {"step": self._step, "merges": self.merges, "merged": parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on a model with the original base weights.

        `state["merged"]` may be a `Fragments`, put together from the parts of any number of workers.
        """
        if self.merges:
            raise ValueError("this model has merges already: load the state into the original base model")
        found = state["merged"]
        parts = found if isinstance(found, Fragments) else Fragments.of(found)
        for number in range(int(state["merges"])):
            kept: dict[str, Fragment] = {}
            for name, layer in self._layers.items():
                whole = []
                for kind, parameter, shape in zip("ab", layer.parameters, layer.shapes, strict=True):
                    factor = parts.whole(f"{number}/{name}/{kind}")
                    shard = self._access.shard(parameter)
                    kept[f"{name}/{kind}"] = (shard.start, shard.of(factor).clone())
                    whole.append(factor.view(shape).to(parameter.device, torch.float32))
                self._merge(layer, *whole)
            self._merged.append(kept)
        self._step = int(state["step"])

    @torch.no_grad()
    def _merge(self, layer: _Layer, a: Tensor, b: Tensor) -> None:
        """W += scaling * B A, each worker in the part of W that it holds; the sum is rounded once."""
        left, right = (a.T, b.T) if layer.transposed else (b, a)
        width = right.shape[1]
        for start, stretch in self._access.live(layer.weight):
            if not stretch.numel():
                continue
            first, last = start // width, -(-(start + stretch.numel()) // width)
            update = (left[first:last] @ right * layer.scaling).flatten()
            update = update[start - first * width :][: stretch.numel()]
            stretch.copy_(stretch.to(update.dtype) + update)


def _adapted_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, _Layer]]:
    for name, module in model.named_modules():
        if not (isinstance(module, LoraLayer) and adapter_name in module.lora_A):
            continue
        r = int(module.r[adapter_name])
        sizes: Any = (module.in_features, module.out_features)
        yield (
            name,
            _Layer(
                weight=module.get_base_layer().weight,
                transposed=bool(getattr(module, "fan_in_fan_out", False)),
                scaling=float(module.scaling[adapter_name]),
                parameters=(module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight),
                shapes=((r, sizes[0]), (sizes[1], r)),
            ),
        )


def _restart_generator(seed: int, step: int) -> torch.Generator:
    """What is drawn at one restart, the same on every worker and in a resumed run."""
    digest = hashlib.sha256(f"relora restart {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
