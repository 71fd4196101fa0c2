"""Check of layer names in a configuration: PEFT silently ignores names that match no layer of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D


def check_targets(config: LoraConfig, model: nn.Module) -> None:
    """Check that each entry of target_modules, rank_pattern and alpha_pattern names a layer of the model.

    A target_modules that is a single pattern is not checked here: PEFT itself raises if it matches no layer.

    Raises:
        ValueError: an entry matches no layer; the message names the entry and the model's linear layers.
    """
    names = [name for name, _ in model.named_modules()]
    targets = config.target_modules if not isinstance(config.target_modules, str) else None
    for target in sorted(targets or ()):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(f"target_modules: {_unknown(target, model)}")
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise ValueError(f"{field}: {_unknown(pattern, model)}")


def _unknown(name: str, model: nn.Module) -> str:
    linear: Sequence[str] = sorted(
        {
            name.removesuffix(".base_layer").rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and not isinstance(module, BaseTunerLayer)
            and ".lora_" not in name
        }
    )
    close = get_close_matches(name, linear, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"the model has no layer {name!r}; {hint}its linear layers are {', '.join(linear)}"
