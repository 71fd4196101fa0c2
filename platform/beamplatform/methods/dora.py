"""DoRA (Liu et al. 2024, arXiv 2402.09353): PEFT's implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from beamplatform.methods.base import ExportKind, Method, Shapes
from beamplatform.methods.head import give_head_its_own_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Dora(Method):
    """W = m (W0 + BA) / |W0 + BA|. A plain LoRA cannot express the column norms, so the export is merged."""

    name: ClassVar[str] = "dora"
    writes_weights: ClassVar[bool] = True
    export_kind: ClassVar[ExportKind] = "merged"

    def extra_memory(self, shapes: Shapes) -> int:
        """Count the bytes of three float32 matrices of the largest layer's size.

        They are B A, the scaled B A, and its sum with W0, from which the norm is computed.
        """
        return 3 * 4 * max(d_out * d_in for d_out, d_in in shapes.values())

    def extra_activations(self, shapes: Shapes) -> int:
        """Add the outputs of the frozen layer and of the adapter, which are kept because magnitudes multiply them."""
        return super().extra_activations(shapes) + 2 * sum(d_out for d_out, _ in shapes.values())

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        give_head_its_own_weight(base, self.values)
        return get_peft_model(base, LoraConfig(use_dora=True, **self.values.lora_arguments(base)))
