"""DoRA (Liu et al. 2024, arXiv 2402.09353): PEFT's implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from beamplatform.methods.base import ExportKind, Method, Shapes
from beamplatform.methods.head import give_head_its_own_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Dora(Method):
    """W = m (W0 + BA) / |W0 + BA|: its column norms make it no plain LoRA, so it is exported merged."""

    name: ClassVar[str] = "dora"
    writes_weights: ClassVar[bool] = True
    export_kind: ClassVar[ExportKind] = "merged"

    def extra_memory(self, shapes: Shapes) -> int:
        """The largest layer's norm is taken of its whole weight: B A, scaled, and the sum, in float32."""
        return 3 * 4 * max(d_out * d_in for d_out, d_in in shapes.values())

    def extra_activations(self, shapes: Shapes) -> int:
        """The outputs of the frozen layer and of the adapter, which the magnitudes multiply, stay as well."""
        return super().extra_activations(shapes) + 2 * sum(d_out for d_out, _ in shapes.values())

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        give_head_its_own_weight(base, self.values)
        return get_peft_model(base, LoraConfig(use_dora=True, **self.values.lora_arguments(base)))
