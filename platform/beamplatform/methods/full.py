"""Full fine-tuning: every parameter of the model is trained, without an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from beamplatform.methods.base import ExportKind, Hyperparameters, Method, Shapes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Full(Method):
    """The reference for all adapters. It costs the most: moments and master weights of the whole model."""

    name: ClassVar[str] = "full"
    hyperparameters: ClassVar[type[Hyperparameters]] = Hyperparameters
    export_kind: ClassVar[ExportKind] = "merged"

    def check_layers(self, shapes: Shapes) -> None:
        """Accept any layer: full fine-tuning has no rank."""

    def build(self, base: PreTrainedModel) -> torch.nn.Module:
        return base.requires_grad_(True)
