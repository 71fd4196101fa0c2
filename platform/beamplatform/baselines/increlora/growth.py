"""Rank growth: measures the importance of modules and adds ranks to the most important ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beamlora.optimizer_access import OptimizerAccess, optimizer_access
from beamlora.workers import check_agreement, worker_count
from beamplatform.baselines.increlora.layer import RESERVE_VALUE, increlora_layers
from beamplatform.baselines.increlora.plan import GrowthPlan, choose_modules
from beamplatform.baselines.orthogonality import orthogonality_gradient


class RankGrowth:
    """Grows one IncreLoRA adapter.

    Call `before_step` after the last backward pass of a step, while gradients exist. Call `step` after the optimizer's
    step. Both are collective on all workers.

    Measuring importance needs the gradient of every layer's dW in float32, which has the shape of the weights
    [d_out, d_in]. This gradient is kept until the last growth, as in the authors' code.

    Args:
        model: a model with an IncreLoRA adapter, bare or inside DeepSpeed's engine.
        optimizer: torch's or DeepSpeed's (ZeRO 0 to 3).
        plan: the growth plan, from `plan_growth`.
        accumulation: micro-batches per step. Each adds an equal share of the regulariser's gradient.
        beta1, beta2: smoothing of the importance and of its uncertainty.
        regulariser: weight of |A A^T - I|_F + |B^T B - I|_F, averaged over modules.
        reserve: number of ranks per module that train before they are needed; None = as many as a growth adds.

    Raises:
        ValueError: the model has no such adapter, or the largest ranks of its modules add up to less than the target.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        plan: GrowthPlan,
        *,
        accumulation: int = 1,
        beta1: float = 0.85,
        beta2: float = 0.85,
        regulariser: float = 0.1,
        reserve: int | None = None,
        adapter_name: str = "default",
    ) -> None:
        self._layers = increlora_layers(model, adapter_name)
        if not self._layers:
            raise ValueError(f"the model has no IncreLoRA adapter {adapter_name!r}")
        self._access: OptimizerAccess = optimizer_access(optimizer)
        self._adapter = adapter_name
        self._capacity = {name: int(layer.r[adapter_name]) for name, layer in self._layers.items()}
        if sum(self._capacity.values()) < plan.target:
            raise ValueError(
                f"{plan.target} ranks do not fit: the modules have room for {sum(self._capacity.values())}"
            )
        self.plan = plan
        self._accumulation = accumulation
        self._betas = (beta1, beta2)
        self._regulariser = regulariser
        self._reserve = plan.ranks if reserve is None else reserve
        self._step = 0
        self._averages = {name: (0.0, 0.0) for name in self._layers}
        self._values: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._pulls: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in self._layers.items():
            a, b, e = layer.parameters_of(adapter_name)
            a.register_hook(lambda gradient, name=name: self._pulled(gradient, name, 0))
            b.register_hook(lambda gradient, name=name: self._pulled(gradient, name, 1))
            e.register_hook(lambda gradient, name=name: self._masked(gradient, name))
            self._set_reserve(name)
        self._read()

    @property
    def ranks(self) -> dict[str, int]:
        """The current number of ranks of every module."""
        return {name: layer.ranks[self._adapter] for name, layer in self._layers.items()}

    @property
    def growing(self) -> bool:
        """Whether more ranks will be added later."""
        return self._step < self.plan.steps[-1] and sum(self.ranks.values()) < self.plan.target

    def before_step(self) -> None:
        """Update the importance of every module from this step's gradients: s = sum |dW * grad dW| / sqrt(numel)."""
        if not self.growing:
            return
        workers = worker_count(self._access.group)
        beta1, beta2 = self._betas
        for name, layer in self._layers.items():
            gradient, layer.gradient = layer.gradient, None
            if gradient is None:
                raise RuntimeError(f"layer {name!r} saw no backward pass in this step")
            if workers > 1:
                dist.all_reduce(gradient, group=self._access.group)
            a, b, e = self._values[name]
            update = (b * e) @ a * layer.rank_scaling(self._adapter)
            # The gradient is a sum over workers here, but the optimizer uses the mean.
            s = float((update * gradient).abs().sum()) / workers / math.sqrt(update.numel())
            importance, uncertainty = self._averages[name]
            importance = beta1 * importance + (1 - beta1) * s
            uncertainty = beta2 * uncertainty + (1 - beta2) * abs(s - importance)
            self._averages[name] = (importance, uncertainty)

    def step(self) -> dict[str, int]:
        """Count one optimizer step, and add ranks if the plan says so.

        Returns how many ranks each grown module gained, by module name.

        Raises:
            RuntimeError: the workers do not agree on which modules grow.
        """
        growing = self.growing
        self._step += 1
        gains: dict[str, int] = {}
        if growing and self._step in self.plan.steps:
            scores = {name: importance * uncertainty for name, (importance, uncertainty) in self._averages.items()}
            gains = self._choose(scores)
            device = next(iter(self._values.values()))[0].device
            check_agreement(f"growth at step {self._step}", gains, device, self._access.group)
            for name, gain in gains.items():
                self._layers[name].ranks[self._adapter] += gain
            for name in self._layers if not self.growing else gains:
                self._set_reserve(name)
        self._read()
        return gains

    def trained_ranks(self) -> dict[str, int]:
        """Return for every module how many ranks have trained A and B: the current ranks plus the reserve ranks."""
        ahead = self._reserve if self.growing else 0
        return {name: min(n + ahead, self._capacity[name]) for name, n in self.ranks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside parameters and optimizer state, as plain values."""
        return {"step": self._step, "ranks": self.ranks, "averages": {n: list(a) for n, a in self._averages.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. The parameters must have been restored before."""
        self._step = int(state["step"])
        for name, n in state["ranks"].items():
            self._layers[name].ranks[self._adapter] = n
        self._averages = {name: (float(i), float(u)) for name, (i, u) in state["averages"].items()}
        self._read()

    def _choose(self, scores: Mapping[str, float]) -> dict[str, int]:
        gains = choose_modules(scores, self.ranks, self._capacity, self.plan)
        if self._step == self.plan.steps[-1]:
            # If the chosen modules are full, the remaining ranks go to other modules.
            all_grow = dataclasses.replace(self.plan, top=len(self._layers))
            while sum(_sums(self.ranks, gains).values()) < self.plan.target:
                gains = _sums(gains, choose_modules(scores, _sums(self.ranks, gains), self._capacity, all_grow))
        return gains

    @torch.no_grad()
    def _set_reserve(self, name: str) -> None:
        """Set E of the ranks after a module's current ones: 1e-5 for reserve ranks, zero for unused ranks.

        After the last growth there are no reserve ranks.
        """
        parameter = self._layers[name].parameters_of(self._adapter)[2]
        state = self._access.read(parameter)
        value, n = state.value, self.ranks[name]
        value[self.trained_ranks()[name] :] = 0
        fresh = value[n : self.trained_ranks()[name]]
        fresh[fresh == 0] = RESERVE_VALUE
        self._access.write(parameter, dataclasses.replace(state, value=value))

    def _read(self) -> None:
        """Read the whole weights for the next step and compute the regulariser's gradient at them.

        While modules grow, the weights are kept, because the importance is measured at them.
        """
        growing = self.growing
        trained = self.trained_ranks()
        scale = self._regulariser / len(self._layers)
        self._values = {}
        for name, layer in self._layers.items():
            layer.observing = growing
            a, b, e = (self._access.value(parameter) for parameter in layer.parameters_of(self._adapter))
            if growing:
                self._values[name] = (a, b, e)
            n = trained[name]
            pull_a, pull_b = torch.zeros_like(a), torch.zeros_like(b)
            pull_a[:n] = scale * orthogonality_gradient(a[:n])
            pull_b[:, :n] = scale * orthogonality_gradient(b[:, :n].T).T
            self._pulls[name] = (pull_a, pull_b)

    def _pulled(self, gradient: Tensor, name: str, which: int) -> Tensor:
        # Gradients are summed over micro-batches, so each micro-batch adds its share of the regulariser's gradient.
        return gradient + (self._pulls[name][which] / self._accumulation).to(gradient)

    def _masked(self, gradient: Tensor, name: str) -> Tensor:
        """Return E's gradient with zeros after the module's current ranks, the only ranks whose E is trained."""
        gradient = gradient.clone()
        gradient[self.ranks[name] :] = 0
        return gradient


def _sums(some: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: some.get(name, 0) + more.get(name, 0) for name in {**some, **more}}
