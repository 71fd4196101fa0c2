"""The adapted linear layer: PEFT's LoRA layer with a weight for every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from beamlora.fused import Operands, beam_products
from beamlora.rules import score_weights

if TYPE_CHECKING:
    from beamlora.config import BeamLoraConfig
    from beamlora.siblings import Siblings

# Used until BeamSearch resolves temperature="auto". Exact meanwhile: scores are zero until the first
# optimizer step, and zeros divided by any temperature give equal weights.
DEFAULT_TEMPERATURE = 0.05


class RankScores(nn.Module):
    """The raw scores g [r] of one adapter in one layer. Calling it gives the ranks' weights (Eq. 4, 5).

    A module and not a bare parameter, because ZeRO-3 gathers a sharded parameter when the module that owns it
    is called. Made in float32 beside a bfloat16 base model too: a softmax at temperature 0.05 magnifies
    differences twentyfold. (DeepSpeed's bf16 mode casts every parameter, and keeps the float32 master of this one.)
    """

    def __init__(self, r: int, temperature: float, scale: Literal["rank", "unit"], device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(r, dtype=torch.float32, device=device))
        self.temperature = temperature
        self.scale = scale

    def forward(self) -> Tensor:
        return score_weights(self.weight, self.temperature, self.scale)

    def extra_repr(self) -> str:
        return f"r={self.weight.numel()}, temperature={self.temperature}, scale={self.scale!r}"


class DeltaVariant(LoraVariant):
    """A variant that merges by its layer's `get_delta_weight`; `module` is the layer that a hook is called for."""

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)


class BeamVariant(DeltaVariant):
    """y = W0 x + scaling * B (w * (A dropout(x))), as PEFT's own forward calls for it in a BeamLinear."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        config: BeamLoraConfig = kwargs["config"]
        temperature = DEFAULT_TEMPERATURE if config.temperature == "auto" else config.temperature
        device = module.lora_A[adapter_name].weight.device
        module.lora_score[adapter_name] = RankScores(module.r[adapter_name], temperature, config.score_scale, device)
        module.fused[adapter_name] = config.fused

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        lora_a, lora_b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        hidden = lora_a(module.lora_dropout[active_adapter](x))
        weights = module.scores(active_adapter)().to(hidden.dtype)
        return result + lora_b(hidden * weights) * module.scaling[active_adapter]


class BeamLinear(LoraLinear):
    """PEFT's LoRA for nn.Linear and transformers' Conv1D; adapters added with a BeamLoraConfig have rank
    scores.

    Parameter names keep the prefix lora_, by which PEFT finds what to train, save and load.
    """

    adapter_layer_names = (*LoraLinear.adapter_layer_names, "lora_score")
    siblings: Siblings | None = None
    """The layers that share its input; `get_beamlora_model` sets it."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        is_conv1d = isinstance(base_layer, Conv1D)
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=is_conv1d, **kwargs)
        self.fan_in_fan_out = is_conv1d

    def update_layer(self, adapter_name: str, r: int, *args: Any, target_name: str = "", **kwargs: Any) -> None:
        """Add an adapter to this layer.

        Raises:
            ValueError: r above the layer's smaller side, or quantized or sharded base weights.
        """
        weight = self.get_base_layer().weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise ValueError(
                f"layer {target_name!r}: its weights are {type(weight).__name__} of {weight.dtype}; "
                "BeamLoRA adapts plain floating-point weights (load the base model unquantized and unsharded)"
            )
        d_in, d_out = cast(tuple[int, int], (self.in_features, self.out_features))
        largest = min(d_in, d_out)
        if r > largest:
            raise ValueError(
                f"layer {target_name!r} maps {d_in} to {d_out} features: r={r} is too large, "
                f"at most {largest} is allowed (lower r, or set rank_pattern for this layer)"
            )
        if not hasattr(self, "lora_score"):
            self.lora_score = nn.ModuleDict()
            self.fused: dict[str, bool] = {}
        super().update_layer(adapter_name, r, *args, target_name=target_name, **kwargs)

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> LoraVariant | None:
        from beamlora.config import BeamLoraConfig

        return BeamVariant() if isinstance(config, BeamLoraConfig) else super().resolve_lora_variant(config=config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The frozen layer and all active adapters; one adapter alone as one operation, where that is possible."""
        if args or kwargs:
            return super().forward(x, *args, **kwargs)
        if self.siblings is not None and (known := self.siblings.take(self, x)) is not None:
            return known
        name = self._fusable(x)
        if name is None:
            return super().forward(x)
        layers = [self, *self._computed_with(x, name)]
        outputs = beam_products(x, [layer._operands(name) for layer in layers], self._dropout(name))
        if self.siblings is not None and len(layers) > 1:
            self.siblings.keep(x, layers[1:], outputs[1:])
        return outputs[0]

    def _computed_with(self, x: Tensor, name: str) -> list[BeamLinear]:
        """The layers whose outputs are computed in one operation with this one's."""
        others = self.siblings.followers(self) if self.siblings is not None else []
        alike = all(layer._fusable(x) == name and layer._dropout(name) == self._dropout(name) for layer in others)
        # Under ZeRO-3 a layer's parameters are whole only while it is called itself.
        return others if alike and not any(hasattr(layer.get_base_layer().weight, "ds_id") for layer in others) else []

    def _operands(self, name: str) -> Operands:
        base = self.get_base_layer()
        return Operands(base.weight, base.bias, *self.factors(name), self.scores(name)() * self.scaling[name])

    def _dropout(self, name: str) -> float:
        module = self.lora_dropout[name]
        return module.p if self.training and isinstance(module, nn.Dropout) else 0.0

    def _fusable(self, x: Tensor) -> str | None:
        """The name of the adapter that `beam_products` can do, whose conditions these are; else None.

        A compiler fuses the plain path by itself, and autocast chooses types by itself: where it would choose x's,
        nothing is left to choose.
        """
        base, device = self.get_base_layer(), x.device.type
        if (
            self.disable_adapters
            or self.merged
            or len(self.active_adapters) != 1
            or type(base) is not nn.Linear
            or torch.compiler.is_compiling()
            or (torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != x.dtype)
        ):
            return None
        name = self.active_adapters[0]
        if not isinstance(self.lora_variant.get(name), BeamVariant) or not self.fused.get(name, False):
            return None
        a, b = self.factors(name)
        frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
        here = x.device == base.weight.device == a.device == b.device  # not where weights are fetched by a hook
        typed = x.dtype == base.weight.dtype and a.dtype == b.dtype in (x.dtype, torch.float32)
        return name if frozen and here and typed else None

    def scores(self, adapter_name: str) -> RankScores:
        """The rank scores of one adapter."""
        return cast(RankScores, self.lora_score[adapter_name])

    def factors(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A [r, d_in] and B [d_out, r] of one adapter."""
        return (
            cast(nn.Parameter, self.lora_A[adapter_name].weight),
            cast(nn.Parameter, self.lora_B[adapter_name].weight),
        )

    def weighted_a(self, adapter_name: str) -> Tensor:
        """A with row i times the weight of rank i, in at least float32. With it the layer is plain LoRA."""
        return self.factors(adapter_name)[0] * self.scores(adapter_name)()[:, None]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds to the base weight, in the base weight's layout."""
        if adapter not in self.lora_score:
            return super().get_delta_weight(adapter)
        weight_a, weight_b = self.weighted_a(adapter), self.factors(adapter)[1]
        delta = weight_b.to(weight_a.dtype) @ weight_a * self.scaling[adapter]
        return (delta.T if self.fan_in_fan_out else delta).to(weight_b.dtype)
