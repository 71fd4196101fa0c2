"""A base model's shapes as plain values, for which neither its weights nor, the second time, any library is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beamplatform.known import known
from beamplatform.models import skeleton

Shape = tuple[int, int]

AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""What a configuration may say is done to logits after the head."""

_CONFIG = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "head_dim", "num_key_value_heads",
    "vocab_size", *AFTER_THE_HEAD,
)  # fmt: skip


@dataclass(frozen=True)
class ModelShapes:
    """What a plan needs to know of a model.

    Attributes:
        name: of its class.
        parameters: how many values it has.
        linear: name -> (d_out, d_in) of its linear layers but the head.
        config: numbers of its configuration; None where it has none of that name.
        exchangeable_attention: whether transformers lets other attention functions take the place of its own.
    """

    name: str
    parameters: int
    linear: Mapping[str, Shape]
    config: Mapping[str, Any]
    exchangeable_attention: bool = True


def model_shapes(path: str, content: str) -> ModelShapes:
    """The shapes of a folder, hub id or 'tiny', whose content has this hash.

    Raises:
        UserError: the configuration cannot be read.
    """
    source = Path(__file__).read_text(encoding="utf-8")
    found = known("shapes", (content, version("transformers"), source), lambda: asdict(_read(path)))
    linear = {name: (int(d_out), int(d_in)) for name, (d_out, d_in) in found["linear"].items()}
    return ModelShapes(**found | {"linear": linear})


def _read(path: str) -> ModelShapes:
    model = skeleton(path)
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear: dict[str, Shape] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            linear[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            linear[name] = (module.weight.shape[1], module.weight.shape[0])
    config = {name: getattr(model.config, name, None) for name in _CONFIG}
    count = sum(parameter.numel() for parameter in model.parameters())
    return ModelShapes(type(model).__name__, count, linear, config, bool(model._supports_attention_backend))
