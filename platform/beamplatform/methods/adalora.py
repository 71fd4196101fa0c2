"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): PEFT's layers and formulas.

PEFT's own budget update reads gradients and writes weights in place. Under DeepSpeed this fails: masked values come
back from the master weights. Here PEFT's RankAllocator works on whole copies of the adapter's parameters. The masked
singular values are then written through the optimizer access, which also changes the master weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from beamplatform.methods.base import AdapterHyperparameters, Hyperparameters, Method, MethodState, Shapes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamlora.fragments import Fragments

_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""The attributes of PEFT's RankAllocator that hold the smoothed importance and its uncertainty, by parameter name."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class AdaLoraHyperparameters(AdapterHyperparameters):
    """`r` is the target rank (average over modules); tinit and tfinal are fractions of all optimizer steps."""

    init_r: Annotated[int, Field(ge=2)] | None = Field(None, description="rank at the start; null = 1.5 r")
    tinit: Fraction = Field(0.1, description="share of the steps before pruning starts")
    tfinal: Fraction = Field(0.3, description="share of the steps after pruning has ended")
    delta_t: Annotated[int, Field(ge=1)] = Field(10, description="optimizer steps between two budget updates")
    beta1: Annotated[float, Field(gt=0, lt=1)] = Field(0.85, description="smoothing of the sensitivity (Eq. 5)")
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.85, description="smoothing of the uncertainty (Eq. 6)")
    orth_reg_weight: Annotated[float, Field(ge=0)] = Field(0.5, description="weight of the regulariser (Eq. 4)")

    @model_validator(mode="after")
    def _ranks_and_shares(self) -> AdaLoraHyperparameters:
        if self.largest_rank <= self.r:
            raise ValueError(f"init_r ({self.largest_rank}) must be above the target rank r ({self.r})")
        if self.tinit + self.tfinal >= 1:
            raise ValueError(f"tinit + tfinal must be below 1, got {self.tinit} + {self.tfinal}")
        return self

    @property
    def largest_rank(self) -> int:
        return self.init_r if self.init_r is not None else max(self.r + 1, self.r * 3 // 2)


class AdaLora(Method):
    """y = W0 x + scaling / r B (E ⊙ A) x. The singular values E are pruned to a budget that falls over training."""

    name: ClassVar[str] = "adalora"
    hyperparameters: ClassVar[type[Hyperparameters]] = AdaLoraHyperparameters

    def check(self) -> None:
        total = self.plan.total_steps
        first, last = self._steps(self.values.tinit), total - self._steps(self.values.tfinal)
        if last - first < self.values.delta_t:
            raise ValueError(
                f"adalora: no budget update fits between step {first} (tinit) and step {last} (tfinal) of {total} with "
                f"delta_t = {self.values.delta_t}; lower delta_t, tinit or tfinal, or train longer"
            )

    def extra_memory(self, shapes: Shapes) -> int:
        """Count the bytes of six whole float32 copies of the adapter on every worker.

        They are the weights, the gradients, the regulariser's gradient and three averages.
        """
        return 6 * 4 * sum(self.values.largest_rank * (d_out + d_in) for d_out, d_in in shapes.values())

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import AdaLoraConfig, get_peft_model

        values = self.values
        arguments = values.lora_arguments(base)
        del arguments["r"]
        config = AdaLoraConfig(
            target_r=values.r,
            init_r=values.largest_rank,
            tinit=self._steps(values.tinit),
            tfinal=self._steps(values.tfinal),
            deltaT=values.delta_t,
            beta1=values.beta1,
            beta2=values.beta2,
            orth_reg_weight=values.orth_reg_weight,
            total_step=self.plan.total_steps,
            **arguments,
        )
        return get_peft_model(base, config)

    def attach(self, model: torch.nn.Module, optimizer: Any) -> None:
        from beamlora.optimizer_access import optimizer_access

        super().attach(model, optimizer)
        self._access = optimizer_access(optimizer)
        self._allocator = self.model.base_model.rankallocator
        self._config = self.model.peft_config["default"]
        tuner = self.model.base_model.model
        self._adapter = {name: p for name, p in tuner.named_parameters() if p.requires_grad and "lora_" in name}
        self._gradients: dict[str, torch.Tensor] = {}
        self._pull: dict[str, torch.Tensor] = {}
        self._update_regulariser(self._read())
        for name in self._pull:
            self._adapter[name].register_hook(lambda gradient, name=name: self._regularised(gradient, name))

    def before_step(self) -> None:
        gradients = {name: self._access.gradient(p) for name, p in self._adapter.items()}
        present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        # The optimizer clips gradients only in its step, but PEFT computes the sensitivity from clipped gradients.
        norm = float(sum(gradient.double().square().sum() for gradient in present.values())) ** 0.5
        limit = self.plan.gradient_clipping
        factor = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        self._gradients = {name: gradient * factor for name, gradient in present.items()}

    def after_step(self, step: int) -> dict[str, float]:
        """Update the importance and mask singular values, in PEFT's order.

        The importance uses the weights after the optimizer step and the gradients of this step. The mask comes after.
        """
        last = self._config.total_step - self._config.tfinal
        values = self._read()
        view = _WholeParameters(values, self._gradients)
        if step < last:
            budget, pattern = self._allocator.update_and_allocate(view, step)
        elif step == last:
            budget, pattern = self._allocator.update_and_allocate(view, step, force_mask=True)
            self._allocator.reset_ipt()
        else:
            # Optimizer steps revive masked singular values, so PEFT masks them after every later step.
            budget, pattern = self._allocator.target_bgt, self._config.rank_pattern
            self._allocator.mask_using_rank_pattern(view, pattern)
        self._gradients = {}
        self._update_regulariser(values)
        if pattern:
            self._config.rank_pattern = pattern
            self._write_singular_values(view)
        # The budget is reported only at a budget update, when it takes effect.
        return {"adalora/budget": float(budget)} if pattern and step <= last else {}

    def trained_parameters(self) -> int:
        pattern = self._config.rank_pattern
        if not pattern:
            return super().trained_parameters()
        tuner, count = self.model.base_model.model, 0
        for name, mask in pattern.items():
            layer = tuner.get_submodule(name.rpartition(".lora_E")[0])
            count += sum(mask) * (layer.in_features + layer.out_features + 1)
        return count

    def state(self) -> MethodState:
        averages = {
            f"{kind}/{name}": tensor for kind in _AVERAGES for name, tensor in getattr(self._allocator, kind).items()
        }
        return MethodState(values={"rank_pattern": self._config.rank_pattern}, tensors=averages)

    def restore(self, values: Mapping[str, Any], tensors: Fragments) -> None:
        self._config.rank_pattern = values["rank_pattern"]
        weights = self._read()
        for kind in _AVERAGES:
            saved = tensors.below(f"{kind}/")
            averages = {name: saved.whole(name).view_as(weights[name]).to(weights[name]) for name in saved.names}
            setattr(self._allocator, kind, averages)
        # PEFT resets both averages of a parameter that `ipt` lacks. PEFT overwrites the values set here before use.
        self._allocator.ipt = dict(self._allocator.exp_avg_ipt)
        self._update_regulariser(weights)

    def export(self, model: Any, folder: Path) -> None:
        """Write a plain LoRA of rank init_r. E and PEFT's scaling are folded into A, and pruned ranks are zero."""
        from beamplatform.methods.plain import save_plain_lora

        factors = {}
        for name, layer in model.base_model.model.named_modules():
            if "default" not in getattr(layer, "lora_E", {}):
                continue
            scale = layer.scaling["default"] / (layer.ranknum["default"] + 1e-5)
            factors[name] = (
                layer.lora_A["default"] * layer.lora_E["default"] * scale,
                layer.lora_B["default"],
            )
        save_plain_lora(factors, base=model.base_model.model, folder=folder)

    def _steps(self, share: float) -> int:
        return int(share * self.plan.total_steps)

    def _read(self) -> dict[str, torch.Tensor]:
        return {name: self._access.value(p) for name, p in self._adapter.items()}

    def _update_regulariser(self, values: Mapping[str, torch.Tensor]) -> None:
        """Compute the regulariser's gradient at these weights. The next backward passes add it to the loss's gradient.

        PEFT adds the regulariser to the loss instead; `beamplatform.baselines.orthogonality` explains the difference.
        """
        from beamplatform.baselines.orthogonality import orthogonality_gradient

        factors = {name: value for name, value in values.items() if "lora_E" not in name}
        scale = self.values.orth_reg_weight / len(factors)
        self._pull = {
            name: scale * orthogonality_gradient(value if "lora_A" in name else value.T)
            for name, value in factors.items()
        }
        self._pull = {name: pull if "lora_A" in name else pull.T for name, pull in self._pull.items()}

    def _regularised(self, gradient: torch.Tensor, name: str) -> torch.Tensor:
        # Gradients are summed over micro-batches, so each micro-batch adds its share of the regulariser's gradient.
        return gradient + (self._pull[name] / self.plan.accumulation).to(gradient)

    def _write_singular_values(self, view: _WholeParameters) -> None:
        import dataclasses

        for name, value in view.named_parameters():
            if "lora_E" in name:
                parameter = self._adapter[name]
                self._access.write(parameter, dataclasses.replace(self._access.read(parameter), value=value))


class _WholeParameters:
    """Replaces the model in PEFT's RankAllocator; holds whole float32 copies of parameters and gradients."""

    def __init__(self, values: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]) -> None:
        self._values = dict(values)
        for name, gradient in gradients.items():
            self._values[name].grad = gradient

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._values.items())
