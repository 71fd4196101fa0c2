"""LoRA (Hu et al. 2021, arXiv 2106.09685): PEFT's implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from beamplatform.methods.base import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Lora(Method):
    """y = W0 x + (alpha / r) B A x. The trained adapter is exported as it is."""

    name: ClassVar[str] = "lora"

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(base, LoraConfig(**self.values.lora_arguments(base)))
