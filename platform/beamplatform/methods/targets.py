"""The layers that every method can adapt, also in models whose experts are fused.

In such models (Mixtral, Qwen's mixtures) PEFT takes 'all-linear', and names such as 'gate' or 'w1', for the router and
the fused experts as well, which are no linear layers: most methods fail on them, and vLLM serves no such adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def names_layer(target: str, layer: str) -> bool:
    """Whether an entry of target_modules names a layer: by its whole name, or by the end of it."""
    return layer == target or layer.endswith(f".{target}")


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers, the head among them; without those that PEFT takes for parts of fused experts."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    taken = {last for last in {_last(name) for name in names} if _takes_for_experts(model, [last])}
    return [name for name in names if _last(name) not in taken]


def all_linear(model: nn.Module) -> str | list[str]:
    """What to give PEFT as target_modules, so that it adapts all linear layers but the head, and nothing else."""
    if not _takes_for_experts(model, "all-linear"):
        return "all-linear"
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [name for name in linear_layers(model) if model.get_submodule(name) is not head]


def _takes_for_experts(model: nn.Module, targets: str | list[str]) -> bool:
    """Whether PEFT would adapt fused experts or their router under these target_modules."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older PEFT does not know of them
        return False
    config = LoraConfig(target_modules=targets)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # names one of several layers that are fused into one
        return True
    return bool(config.target_parameters)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
