"""Registration with PEFT, so that PEFT's own functions load BeamLoRA's adapters or refuse them with a clear error.

PEFT lets a configuration bring its own layers, but another package cannot register a new type of adapter. This module
therefore adds an entry to PEFT's dictionary of configurations, and wraps three of PEFT's functions to add checks. For
every other type of adapter the three functions behave as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import hotswap
from torch import nn

from beamlora.rollback import unchanged_on_failure
from beamlora.targets import check_targets


def register(name: str, config_class: type[LoraConfig], adopt: Callable[[LoraLinear], None]) -> None:
    """Register `config_class` with PEFT for adapters whose saved configuration has the peft_type `name`.

    PeftConfig.from_pretrained, PeftModel.from_pretrained, AutoPeftModel, load_adapter and hot-swapping then support
    these adapters. They can also be added to a model that has plain LoRA adapters, whose layers `adopt` converts.
    """
    # A string can be a key, because PEFT's enum keys compare equal to their names.
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config_class

    def inject_adapter(
        original: Callable[..., None], tuner: LoraModel, model: nn.Module, adapter: str, *rest: Any, **options: Any
    ) -> None:
        if not isinstance(tuner.peft_config[adapter], config_class):
            return original(tuner, model, adapter, *rest, **options)
        check_targets(tuner.peft_config[adapter], model)
        with unchanged_on_failure(model):
            for module in model.modules():
                if type(module) is LoraLinear:
                    adopt(module)
            original(tuner, model, adapter, *rest, **options)

    def check_add_weighted_adapter(
        original: Callable[..., Any], tuner: LoraModel, adapters: list[str], *rest: Any, **options: Any
    ) -> Any:
        beam_adapters = [adapter for adapter in adapters if isinstance(tuner.peft_config.get(adapter), config_class)]
        if beam_adapters:
            raise ValueError(
                f"add_weighted_adapter would combine A and B of {beam_adapters} without their rank scores: "
                "write plain LoRA adapters with beamlora.export_lora, and combine these"
            )
        return original(tuner, adapters, *rest, **options)

    def check_hotswap(original: Callable[..., None], old: LoraConfig, new: LoraConfig) -> None:
        original(old, new)
        kinds = [isinstance(config, config_class) for config in (old, new)]
        if not any(kinds):
            return
        if not all(kinds):
            raise ValueError("a BeamLoRA adapter can only be hot-swapped with another one (see export_lora)")
        for field in ("r", "rank_pattern", "temperature", "score_scale"):
            values = [getattr(config, field) for config in (old, new)]
            if values[0] != values[1]:
                raise ValueError(
                    f"hot-swapping BeamLoRA adapters needs the same {field}, here {values[0]!r} and {values[1]!r}: "
                    "load the other one under a name of its own, or swap what export_lora wrote"
                )

    _put_in_front(LoraModel, "inject_adapter", inject_adapter)
    _put_in_front(LoraModel, "_check_add_weighted_adapter", check_add_weighted_adapter)
    _put_in_front(hotswap, "check_hotswap_configs_compatible", check_hotswap)


def _put_in_front(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace `owner.name` by a wrapper that calls `function` with the original function as its first argument."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def replacement(*arguments: Any, **options: Any) -> Any:
        return function(original, *arguments, **options)

    setattr(owner, name, replacement)
