"""IncreLoRA (Zhang et al. 2023, arXiv 2308.12043): this project's `beamplatform.baselines.increlora`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from beamplatform.methods.base import AdapterHyperparameters, Hyperparameters, Length, Method, MethodState, Shapes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragments

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class IncreLoraHyperparameters(AdapterHyperparameters):
    """`r` is the rank at the end (average over modules); tinit and tfinal are fractions of all optimizer steps."""

    r: Annotated[int, Field(ge=2, description="rank at the end, on average over modules")] = 8
    init_r: Count = Field(1, description="rank of every module at the start")
    max_r: Count | None = Field(None, description="most ranks of one module; null = 4 r, at most 512")
    tinit: Fraction = Field(0.1, description="share of the steps before growth starts")
    tfinal: Fraction = Field(0.3, description="share of the steps after growth has ended")
    interval: Length = Field(0.02, description="steps between growths, or a fraction of all steps")
    ranks_per_growth: Count | None = Field(None, description="ranks a module gains; null = half of r")
    top_h: Count | None = Field(None, description="modules that grow each time; null = as few as reach r in time")
    reserve: Annotated[int, Field(ge=0)] | None = Field(
        None, description="ranks of each module that train ahead; null = ranks_per_growth"
    )
    new_warmup: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps of the warm-up of new ranks; null = the interval"
    )
    beta1: Annotated[float, Field(gt=0, lt=1)] = Field(0.85, description="smoothing of the importance")
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.85, description="smoothing of its uncertainty")
    orth_reg_weight: Annotated[float, Field(ge=0)] = Field(0.1, description="weight of the regulariser")

    @model_validator(mode="after")
    def _consistent(self) -> IncreLoraHyperparameters:
        if self.init_r >= self.r:
            raise ValueError(f"init_r ({self.init_r}) must be below the rank at the end r ({self.r})")
        if self.max_r is not None and self.max_r < self.r:
            raise ValueError(f"max_r ({self.max_r}) must be at least the rank at the end r ({self.r})")
        if self.tinit + self.tfinal >= 1:
            raise ValueError(f"tinit + tfinal must be below 1, got {self.tinit} + {self.tfinal}")
        return self

    @property
    def largest_rank(self) -> int:
        # vLLM serves adapters up to rank 512.
        return self.max_r if self.max_r is not None else max(self.r, min(4 * self.r, 512))


class IncreLora(Method):
    """y = W0 x + alpha / n B (E ⊙ A) x. The most important modules gain ranks until the average rank is r."""

    name: ClassVar[str] = "increlora"
    hyperparameters: ClassVar[type[Hyperparameters]] = IncreLoraHyperparameters

    def check_layers(self, shapes: Shapes) -> None:
        super().check_layers(shapes)
        self._plan(len(shapes))

    def extra_memory(self, shapes: Shapes) -> int:
        """Count the bytes of every layer's gradient of dW and of three tensors of the adapter's size, all in float32.

        The three are the optimizer's ages, a whole copy of the adapter and the regulariser's gradient.
        """
        adapter = sum(self.values.largest_rank * (d_out + d_in) for d_out, d_in in shapes.values())
        return 4 * (sum(d_out * d_in for d_out, d_in in shapes.values()) + 3 * adapter)

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from beamplatform.baselines.increlora.layer import IncreLoraConfig, get_increlora_model

        values = self.values
        arguments = values.lora_arguments(base) | {"r": values.largest_rank}
        return get_increlora_model(base, IncreLoraConfig(init_r=values.init_r, **arguments))

    def make_optimizer(self, parameters: list[torch.nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
        from beamplatform.baselines.increlora.optimizer import GrowingAdamW

        warmup = self.values.new_warmup
        return GrowingAdamW(
            parameters,
            lr=self.values.learning_rate,
            weight_decay=weight_decay,
            new_warmup=self._interval() if warmup is None else warmup,
        )

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        from beamplatform.baselines.increlora.growth import RankGrowth
        from beamplatform.baselines.increlora.layer import increlora_layers

        super().attach(model, optimizer)
        self._layers = increlora_layers(self.model)
        self._growth = RankGrowth(
            self.model,
            optimizer,
            self._plan(len(self._layers)),
            accumulation=self.plan.accumulation,
            beta1=self.values.beta1,
            beta2=self.values.beta2,
            regulariser=self.values.orth_reg_weight,
            reserve=self.values.reserve,
        )
        self._most = self.trained_parameters()

    def before_step(self) -> None:
        self._growth.before_step()

    def after_step(self, step: int) -> dict[str, float]:
        if not self._growth.step():
            return {}
        self._most = max(self._most, self.trained_parameters())
        return {
            "increlora/ranks": float(sum(self._growth.ranks.values())),
            "train/trainable_parameters": float(self._most),
        }

    def trained_parameters(self) -> int:
        ranks = self._growth.trained_ranks()
        active = self._growth.ranks
        return sum(
            ranks[name] * (layer.in_features + layer.out_features) + active[name]
            for name, layer in self._layers.items()
        )

    def state(self) -> MethodState:
        return MethodState(values={**self._growth.state_dict(), "most": self._most})

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:
        self._growth.load_state_dict(values)
        self._most = values["most"]

    def export(self, model: Any, folder: Path) -> None:
        """Write a plain LoRA. E and the scaling are folded into A; zeros pad all modules to the largest rank."""
        from beamplatform.baselines.increlora.layer import folded_factors
        from beamplatform.methods.plain import save_plain_lora

        save_plain_lora(folded_factors(model), base=model.base_model.model, folder=folder)

    def _interval(self) -> int:
        interval = self.values.interval
        return interval if isinstance(interval, int) else max(1, round(interval * self.plan.total_steps))

    def _plan(self, modules: int) -> Any:
        from beamplatform.baselines.increlora.plan import plan_growth

        values, total = self.values, self.plan.total_steps
        return plan_growth(
            total_steps=total,
            modules=modules,
            target_rank=values.r,
            init_r=values.init_r,
            warmup=int(values.tinit * total),
            interval=self._interval(),
            until=total - int(values.tfinal * total),
            ranks=values.ranks_per_growth,
            top=values.top_h,
        )
