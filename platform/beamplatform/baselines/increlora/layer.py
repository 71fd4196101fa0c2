"""IncreLoRA's layer: PEFT's LoRA with a weight for every rank and a growing number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from beamlora.layer import DeltaVariant

INIT_STD = 0.02
"""Standard deviation of A and B at the start."""
RESERVE_VALUE = 1e-5
"""E of a reserve rank: large enough to pass a gradient to A and B, too small to change the output noticeably."""


@dataclass
class IncreLoraConfig(LoraConfig):
    """PEFT's LoraConfig with one more field. The field r is the largest rank that a module can reach.

    Attributes:
        init_r: rank of every module at the start.

    Raises:
        ValueError: r or init_r is out of range, or an option of LoraConfig does not work with growing ranks.
    """

    init_r: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.init_r <= self.r:
            raise ValueError(f"init_r={self.init_r}: must be at least 1 and at most r={self.r}")
        if self.use_dora or self.lora_bias or self.rank_pattern:
            raise ValueError("use_dora, lora_bias and rank_pattern cannot be combined with IncreLoRA, leave them unset")
        self._register_custom_module({nn.Linear: IncreLinear})


class RankValues(nn.Module):
    """Holds E [r] of one adapter in one layer.

    E has a module of its own because ZeRO-3 gathers a parameter when its module is called.
    """

    def __init__(self, r: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(r, dtype=torch.float32, device=device))

    def forward(self) -> Tensor:
        return self.weight


class _Observe(torch.autograd.Function):
    """Returns a layer's update unchanged; its backward pass gives the layer d loss / d dW = (d loss / d y)^T x."""

    @staticmethod
    def forward(ctx: Any, update: Tensor, x: Tensor, layer: IncreLinear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return update.view_as(update)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        ctx.layer.observe(gradient.flatten(0, -2).T @ x.flatten(0, -2))
        return gradient, None, None


class _IncreVariant(DeltaVariant):
    """Computes y = W0 x + alpha / (n + 1e-5) B (E * (A dropout(x))). PEFT's own forward calls it."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        config: IncreLoraConfig = kwargs["config"]
        a, b = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        nn.init.normal_(a, std=INIT_STD)
        nn.init.normal_(b, std=INIT_STD)
        module.lora_E[adapter_name] = RankValues(module.r[adapter_name], a.device)
        module.ranks[adapter_name] = config.init_r

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        x = module.lora_dropout[active_adapter](x)
        hidden = module.lora_A[active_adapter](x)
        values = module.lora_E[active_adapter]().to(hidden.dtype)
        update = module.lora_B[active_adapter](hidden * values) * module.rank_scaling(active_adapter)
        if module.observing and torch.is_grad_enabled():
            update = _Observe.apply(update, x, module)
        return result + update


class IncreLinear(LoraLinear):
    """PEFT's LoRA for nn.Linear, with a growing number of ranks.

    Attributes:
        ranks: adapter -> its current number of ranks n. Ranks from index n on are in reserve or not yet used.
        observing: whether backward passes measure the gradient of dW.
        gradient: sum of the measured gradients [d_out, d_in] in float32; None if there are none.
    """

    adapter_layer_names = (*LoraLinear.adapter_layer_names, "lora_E")
    other_param_names = (*LoraLinear.other_param_names, "ranks")

    def update_layer(self, adapter_name: str, r: int, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, "lora_E"):
            self.lora_E = nn.ModuleDict()
            self.ranks: dict[str, int] = {}
            self.observing = False
            self.gradient: Tensor | None = None
        super().update_layer(adapter_name, r, *args, **kwargs)

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> LoraVariant | None:
        return _IncreVariant() if isinstance(config, IncreLoraConfig) else super().resolve_lora_variant(config=config)

    def rank_scaling(self, adapter_name: str) -> float:
        """Return alpha / (n + 1e-5), where n is the adapter's current number of ranks."""
        return self.lora_alpha[adapter_name] / (self.ranks[adapter_name] + 1e-5)

    def parameters_of(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """Return the adapter's A [r, d_in], B [d_out, r] and E [r]."""
        parts = (self.lora_A, self.lora_B, self.lora_E)
        return cast("tuple[nn.Parameter, nn.Parameter, nn.Parameter]", tuple(p[adapter_name].weight for p in parts))

    def observe(self, gradient: Tensor) -> None:
        """Add one micro-batch's d loss / d dW to the sum in `self.gradient`."""
        self.gradient = gradient.float() if self.gradient is None else self.gradient.add_(gradient)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return dW, which merging adds to the base weight."""
        a, b, e = self.parameters_of(adapter)
        return (b * e.to(b)) @ a * self.rank_scaling(adapter)


def get_increlora_model(base_model: nn.Module, config: IncreLoraConfig, adapter_name: str = "default") -> PeftModel:
    """Put an IncreLoRA adapter into `base_model`, in place, and return PEFT's model around it.

    Raises:
        ValueError: a targeted layer is not nn.Linear.
    """
    model = get_peft_model(base_model, config, adapter_name=adapter_name)
    layers = increlora_layers(model, adapter_name)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and name.removeprefix("base_model.model.") not in layers:
            raise ValueError(f"layer {name!r} is a {type(module).__name__}: IncreLoRA adapts nn.Linear only")
    return model


def increlora_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, IncreLinear]:
    """Return the adapter's layers by their names in the base model, in model order."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, IncreLinear) and adapter_name in module.lora_E
    }


@torch.no_grad()
def folded_factors(model: nn.Module, adapter_name: str = "default") -> dict[str, tuple[Tensor, Tensor]]:
    """Return plain LoRA factors of every layer: name -> (A [n, d_in] times E and the scaling, B [d_out, n])."""
    factors = {}
    for name, layer in increlora_layers(model, adapter_name).items():
        a, b, e = layer.parameters_of(adapter_name)
        n = layer.ranks[adapter_name]
        factors[name] = (a[:n].float() * e[:n, None] * layer.rank_scaling(adapter_name), b[:, :n])
    return factors
