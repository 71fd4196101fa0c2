"""Merging an adapter into its base weights and restarting it, with any optimizer that `beamlora` can access."""

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
"""The share of the moments that a restart sets to zero, for each choice of `Moments` (the authors' defaults)."""


@dataclass(frozen=True)
class _Layer:
    """One adapted layer. `parameters` holds A and B, and `shapes` holds their shapes before any sharding."""

    weight: nn.Parameter
    transposed: bool
    scaling: float
    parameters: tuple[nn.Parameter, nn.Parameter]
    shapes: tuple[tuple[int, int], tuple[int, int]]


class ReLora:
    """Merges and restarts one LoRA adapter.

    Call `step` after every optimizer step. It is collective on all workers.

    The base weights change at every merge, but checkpoints of adapters do not hold base weights. So each worker keeps
    its shard of the factors of every merge on the CPU, and `load_state_dict` merges them again in the same order. With
    the same number of workers, the resulting weights are identical to the bit.

    Args:
        model: a PEFT model with a plain LoRA adapter, bare or inside DeepSpeed's engine.
        optimizer: torch's or DeepSpeed's (ZeRO 0 to 3).
        restarts: numbers of the optimizer steps after which the adapter is merged, see `equal_cycles`.
        seed: seed of the random draws at restarts; must be the same on every worker.
        moments: which elements of the adapter's moments a restart keeps: the largest by magnitude, or random ones.
        prune: share of the moments that is set to zero; None = the authors' default, see PRUNE.

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
        """The number of merges so far."""
        return len(self._merged)

    def step(self) -> bool:
        """Count one optimizer step, and merge and restart if it is one of `restarts`. Returns whether it merged."""
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
        """Return what a resumed run needs: {"step": int, "merges": int, "merged": {name: (start, elements)}}.

        "merged" holds this worker's slices of the flattened factors of every merge, each with its start.
        """
        parts = {f"{number}/{key}": part for number, kept in enumerate(self._merged) for key, part in kept.items()}
        return {"step": self._step, "merges": self.merges, "merged": parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, on a model with the original base weights.

        `state["merged"]` may be a `Fragments`, which joins the slices of any number of workers.
        """
        if self.merges:
            raise ValueError("this model has merges already: load the state into the original base model")
        merged = state["merged"]
        parts = merged if isinstance(merged, Fragments) else Fragments.of(merged)
        for number in range(int(state["merges"])):
            kept: dict[str, Fragment] = {}
            for name, layer in self._layers.items():
                factors = []
                for kind, parameter, shape in zip("ab", layer.parameters, layer.shapes, strict=True):
                    factor = parts.whole(f"{number}/{name}/{kind}")
                    shard = self._access.shard(parameter)
                    kept[f"{name}/{kind}"] = (shard.start, shard.of(factor).clone())
                    factors.append(factor.view(shape).to(parameter.device, torch.float32))
                self._merge(layer, *factors)
            self._merged.append(kept)
        self._step = int(state["step"])

    @torch.no_grad()
    def _merge(self, layer: _Layer, a: Tensor, b: Tensor) -> None:
        """Add scaling * B A to the part of W that this worker holds. The sum is rounded once."""
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
    """Return a generator for one restart's random draws. They are the same on every worker and in a resumed run."""
    digest = hashlib.sha256(f"relora restart {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
