"""The adapted linear layer: PEFT's LoRA layer with one weight per rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NoReturn, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from beamlora.dropout import rate_of
from beamlora.fusable import fused_adapter
from beamlora.fused import Operands, beam_product
from beamlora.options import BeamOptions
from beamlora.rules import score_weights

# Used until BeamSearch resolves temperature="auto". The value has no effect until then: all scores are zero before
# the first optimizer step, and zeros divided by any temperature give equal weights.
DEFAULT_TEMPERATURE = 0.05


class RankScores(nn.Module):
    """The raw scores g [r] of one adapter in one layer. Calling the module returns the rank weights w [r] (Eq. 4, 5).

    This is a module instead of a bare parameter because ZeRO-3 gathers a sharded parameter when the module that owns
    it is called. The scores are float32 even if the base model is bfloat16, because a softmax at temperature 0.05
    magnifies differences twentyfold. (DeepSpeed's bf16 mode casts every parameter, but keeps a float32 master copy of
    the scores.)
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
    """A LoRA variant that merges and unmerges with the layer's `get_delta_weight`. `module` is that layer."""

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
    """The forward pass y = W0 x + scaling * B (w * (A dropout(x))), which PEFT's forward calls in a BeamLinear."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        config: BeamOptions = kwargs["config"]
        temperature = DEFAULT_TEMPERATURE if config.temperature == "auto" else config.temperature
        device = module.lora_A[adapter_name].weight.device
        module.lora_beam[adapter_name] = RankScores(module.r[adapter_name], temperature, config.score_scale, device)
        module.fused[adapter_name] = config.fused

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        lora_a, lora_b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        hidden = lora_a(module.lora_dropout[active_adapter](x))
        weights = module.scores(active_adapter)().to(hidden.dtype)
        if hidden.shape[-1] != weights.shape[0]:
            raise ValueError(
                f"adapter {active_adapter!r} has {hidden.shape[-1]} ranks and {weights.shape[0]} scores: "
                "prepare_model_for_compiled_hotswap cannot pad scores; write a plain LoRA adapter (export_lora)"
            )
        return result + lora_b(hidden * weights) * module.scaling[active_adapter]


def refuse_layer(target: nn.Module, adapter_name: str, *, target_name: str = "", **kwargs: Any) -> NoReturn:
    """Refuse a targeted layer of an unsupported type, to which PEFT would add a plain LoRA adapter without scores.

    PEFT calls this instead of constructing an adapted layer.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"layer {target_name!r} is a {type(target).__name__}: BeamLoRA adapts nn.Linear and transformers' Conv1D only "
        "(name other target_modules, or add it to exclude_modules)"
    )


class BeamLinear(LoraLinear):
    """PEFT's LoRA layer for nn.Linear and transformers' Conv1D, with support for rank scores.

    Adapters that were added with a BeamLoraConfig have rank scores; other adapters are plain LoRA.
    Parameter names keep the prefix lora_, by which PEFT finds the parameters to train, save and load.
    """

    # Not named lora_score: PEFT adds modules whose name ends with "score", as many classifiers' does, to
    # modules_to_save.
    adapter_layer_names = (*LoraLinear.adapter_layer_names, "lora_beam")
    other_param_names = (*LoraLinear.other_param_names, "fused")

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        is_conv1d = isinstance(base_layer, Conv1D)
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=is_conv1d, **kwargs)
        self.fan_in_fan_out = is_conv1d

    def update_layer(self, adapter_name: str, r: int, *args: Any, target_name: str = "", **kwargs: Any) -> None:
        """Add an adapter to this layer.

        Raises:
            ValueError: r exceeds the smaller of the layer's two dimensions, or the base weights are quantized or
                sharded.
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
        self._have_scores()
        super().update_layer(adapter_name, r, *args, target_name=target_name, **kwargs)

    @classmethod
    def adopt(cls, layer: LoraLinear) -> None:
        """Convert a PEFT layer to this class in place, so that adapters with scores can be added to it."""
        layer.__class__ = cls
        cast(BeamLinear, layer)._have_scores()

    def _have_scores(self) -> None:
        if not hasattr(self, "lora_beam"):
            self.lora_beam = nn.ModuleDict()
            self.fused: dict[str, bool] = {}

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> LoraVariant | None:
        return BeamVariant() if isinstance(config, BeamOptions) else super().resolve_lora_variant(config=config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the frozen layer and all active adapters, with the fused operation if it can run."""
        name = None if args or kwargs else fused_adapter(self, self.fused, x)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base = self.get_base_layer()
        operands = Operands(base.weight, base.bias, *self.factors(name), self.scores(name)() * self.scaling[name])
        return beam_product(x, operands, rate_of(self.lora_dropout[name]))

    def scores(self, adapter_name: str) -> RankScores:
        """Return the rank scores of one adapter."""
        return cast(RankScores, self.lora_beam[adapter_name])

    def factors(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A [r, d_in] and B [d_out, r] of one adapter."""
        return (
            cast(nn.Parameter, self.lora_A[adapter_name].weight),
            cast(nn.Parameter, self.lora_B[adapter_name].weight),
        )

    def weighted_a(self, adapter_name: str) -> Tensor:
        """Return A with row i multiplied by the rank weight w_i, in at least float32: the A of an equal plain LoRA."""
        return self.factors(adapter_name)[0] * self.scores(adapter_name)()[:, None]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the matrix that merging adds to the base weight, in the base weight's layout."""
        if adapter not in self.lora_beam:
            return super().get_delta_weight(adapter)
        weight_a, weight_b = self.weighted_a(adapter), self.factors(adapter)[1]
        delta = weight_b.to(weight_a.dtype) @ weight_a * self.scaling[adapter]
        return (delta.T if self.fan_in_fan_out else delta).to(weight_b.dtype)


def beam_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, BeamLinear]]:
    """Yield the name and the module of each layer in which the adapter has rank scores, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, BeamLinear) and adapter_name in module.lora_beam:
            yield name, module
