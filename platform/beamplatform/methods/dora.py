"""DoRA (Liu et al. 2024, arXiv 2402.09353): PEFT's implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from beamplatform.methods.base import ExportKind, Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Dora(Method):
    """W = m (W0 + BA) / |W0 + BA|: its column norms make it no plain LoRA, so it is exported merged."""

    name: ClassVar[str] = "dora"
    export_kind: ClassVar[ExportKind] = "merged"

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(base, LoraConfig(use_dora=True, **self.values.lora_arguments()))
