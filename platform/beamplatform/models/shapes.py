"""A base model's shapes as plain values.

Reading them loads no weights. The second time they come from a cache, and no deep-learning library is loaded either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError
from beamplatform.io.disk_cache import cached_json
from beamplatform.methods.targets import linear_layers
from beamplatform.models.loading import skeleton

Shape = tuple[int, int]

AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Entries of a configuration by which a model changes its logits after the head (the output layer)."""

_CONFIG = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "head_dim", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", *AFTER_THE_HEAD,
)  # fmt: skip


@dataclass(frozen=True)
class ModelShapes:
    """What a plan needs to know about a model.

    Attributes:
        name: name of the model's class.
        parameters: number of values in all parameters.
        linear: name -> (d_out, d_in) of every linear layer except the head.
        config: entries of the model's configuration; None for an entry that it lacks.
        exchangeable_attention: whether transformers can replace the model's attention function.
        head: name -> (d_out, d_in) of the head (the output layer); empty if it is not a linear layer.
        head_is_tied: whether the head shares the weight of the embedding.
        others: name -> class of every layer with weights that no method can adapt, such as embeddings and norms.
        not_linear: the layers in `others` with a matrix, except embeddings; for instance fused experts.
    """

    name: str
    parameters: int
    linear: Mapping[str, Shape]
    config: Mapping[str, Any]
    exchangeable_attention: bool = True
    head: Mapping[str, Shape] = field(default_factory=dict)
    head_is_tied: bool = False
    others: Mapping[str, str] = field(default_factory=dict)
    not_linear: Mapping[str, str] = field(default_factory=dict)

    def check_length(self, max_length: int) -> None:
        """Check that a training example of `max_length` tokens fits the model's positions.

        Raises:
            UserError: the model has fewer positions.
        """
        positions = self.config.get("max_position_embeddings")
        if positions is not None and max_length > positions:
            raise UserError(
                f"data.max_length: {max_length} tokens are more than the {positions} positions of the model "
                f"(max_position_embeddings in its config.json); allowed: at most {positions}"
            )


def model_shapes(path: str, content: str) -> ModelShapes:
    """The shapes of a model, from the cache if its content is known there.

    Args:
        path: a folder, hub id or 'tiny'.
        content: hash of the model's files.

    Raises:
        UserError: the configuration cannot be read.
    """
    source = Path(__file__).read_text(encoding="utf-8")
    cached = cached_json(
        "shapes", (content, version("transformers"), version("peft"), source), lambda: asdict(_read(path))
    )
    shapes = {
        key: {name: (int(d_out), int(d_in)) for name, (d_out, d_in) in cached[key].items()}
        for key in ("linear", "head")
    }
    return ModelShapes(**cached | shapes)


def _read(path: str) -> ModelShapes:
    model = skeleton(path)
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear: dict[str, Shape] = {}
    of_head: dict[str, Shape] = {}
    others: dict[str, str] = {}
    not_linear: dict[str, str] = {}
    adaptable = set(linear_layers(model))
    for name, module in model.named_modules():
        if name in adaptable:
            d_in, d_out = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
            (of_head if module is head else linear)[name] = (d_out, d_in)
        elif own_parameters := list(module.parameters(recurse=False)):
            others[name] = type(module).__name__
            if max(parameter.ndim for parameter in own_parameters) > 1 and not isinstance(module, nn.Embedding):
                not_linear[name] = type(module).__name__
    text = model.config.get_text_config()
    return ModelShapes(
        type(model).__name__,
        sum(parameter.numel() for parameter in model.parameters()),
        linear,
        {name: getattr(text, name, None) for name in _CONFIG},
        bool(model._supports_attention_backend),
        of_head,
        bool(of_head) and head.weight is model.get_input_embeddings().weight,
        others,
        not_linear,
    )
