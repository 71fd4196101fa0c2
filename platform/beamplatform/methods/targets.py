"""The linear layers that every method can adapt, also in models whose experts are fused.

In such models (Mixtral, Qwen's mixtures) PEFT applies 'all-linear', and names such as 'gate' or 'w1', to the router and
the fused experts as well. These are not linear layers: most methods fail on them, and vLLM cannot serve such an
adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def names_layer(target: str, layer: str) -> bool:
    """Whether an entry of target_modules equals a layer's name or its last parts ('q_proj', 'self_attn.q_proj')."""
    return layer == target or layer.endswith(f".{target}")


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers, including the head.

    Layers that PEFT would treat as parts of fused experts are left out.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    expert_names = {last for last in {_last(name) for name in names} if _takes_for_experts(model, [last])}
    return [name for name in names if _last(name) not in expert_names]


def all_linear(model: nn.Module) -> str | list[str]:
    """Return the target_modules with which PEFT adapts all linear layers except the head, and nothing else."""
    if not _takes_for_experts(model, "all-linear"):
        return "all-linear"
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [name for name in linear_layers(model) if model.get_submodule(name) is not head]


def _takes_for_experts(model: nn.Module, targets: str | list[str]) -> bool:
    """Whether PEFT would adapt fused experts or their router with these target_modules."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older PEFT does not adapt fused experts
        return False
    config = LoraConfig(target_modules=targets)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # a target is one of several layers that are fused into one
        return True
    return bool(config.target_parameters)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
