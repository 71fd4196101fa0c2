"""Checks once per content, before anything starts, that a base model's files are complete and fit together.

The headers of the safetensors files are passed to transformers' own loader as tensors without values. So renamed keys,
tied weights, fused experts and several files are handled as in the real loading, and this reads no weights.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from beamplatform.errors import UserError
from beamplatform.io.disk_cache import cached_json
from beamplatform.models.loading import (
    incomplete,
    load_tokenizer,
    quiet_transformers,
    refuse_not_finite,
    resolve_path,
    skeleton,
)
from beamplatform.models.weight_files import Shapes, folder_files, folder_shapes, not_floating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_model(path: str, content: str, *, trains: bool = False) -> None:
    """Check a base model's files: the configuration, the weights' names, shapes and values, and the tokenizer.

    Args:
        path: a folder, hub id or 'tiny'. For a hub id, only the headers are requested; no weights are downloaded.
        content: hash of the files (`content_hash`). Files that have passed the check are not checked again.
        trains: whether the model will be trained; otherwise it only generates.

    Raises:
        UserError: the message describes the first thing that is wrong.
    """
    source = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SOURCES)
    cached_json("checked", (content, version("transformers"), trains, source), lambda: _check(path, trains=trains))


_SOURCES = ("check.py", "loading.py", "weight_files.py")
"""The source files of the check; after a change in one of them, every model is checked again."""


def check_weights(resolved: str, *, what: str) -> None:
    """Check that the weights in a model's folder match its configuration and are all finite.

    Raises:
        UserError: names the first tensor that is missing, has another shape, or holds a NaN or infinite value.
    """
    model = skeleton(resolved, what=what)
    refuse_unfitting(model, folder_shapes(Path(resolved)), f"{what}: {resolved}")
    parameter_names = {name for name, _ in model.named_parameters()}
    for file in folder_files(Path(resolved)):
        # Tensors that are not parameters may be integers: masks and positions that old versions have saved.
        if odd := {name: kind for name, kind in not_floating(file).items() if name in parameter_names}:
            name, kind = min(odd.items())
            raise UserError(
                f"{what}: {file}: the tensor {name} holds no floating-point numbers ({kind}), as of a quantized model "
                "without its configuration; give the model in float32, bfloat16 or float16"
            )
    refuse_not_finite(folder_files(Path(resolved)), what=what)


def refuse_unfitting(model: PreTrainedModel, shapes: Shapes, where: str) -> None:
    """Check that tensors of these names and shapes make up the complete model.

    Args:
        model: the model without weights, from `skeleton`.
        shapes: name -> shape of the tensors in the model's safetensors files.
        where: text that names the model's files, for the message.

    Raises:
        UserError: names the first tensor that is missing, has another shape, or belongs to a layer too many.
    """
    import torch

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        with quiet_transformers():
            _, loading_info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                device_map="meta",
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except RuntimeError as error:  # tensors cannot be put together, such as all experts of a layer
        wrong = _odd_expert(shapes) or "has weights that its config.json does not fit; give the whole model"
        raise UserError(f"{where} {wrong}") from error
    if wrong := incomplete(loading_info):
        raise UserError(f"{where} {_odd_expert(shapes) or wrong}")
    if unknown := _of_further_layers(loading_info["unexpected_keys"], model):
        raise UserError(
            f"{where} has weights of more layers than its config.json asks for, such as {unknown}; they would be left "
            "out, give the configuration that these weights were saved with"
        )


def _check(path: str, *, trains: bool) -> bool:
    resolved = resolve_path(path)
    model = skeleton(path)
    if Path(resolved).is_dir():
        check_weights(resolved, what="model.path")
    elif shapes := _hub_shapes(resolved):
        refuse_unfitting(model, shapes, f"model.path: {resolved}")
    _check_tokenizer(path, model, trains=trains)
    return True


def _check_tokenizer(path: str, model: PreTrainedModel, *, trains: bool) -> None:
    resolved, tokenizer = resolve_path(path), load_tokenizer(path)
    if trains and tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path: the tokenizer of {resolved} names no end-of-sequence token, with which every training "
            "example ends; set eos_token in its tokenizer_config.json"
        )
    embeddings = model.get_input_embeddings().weight.shape[0]
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if not token.special)
    special = (getattr(tokenizer, f"{name}_token_id") or 0 for name in _SPECIAL)
    largest = max(tokenizer.vocab_size - 1, *special, *added)  # no text contains the other special tokens
    if largest >= embeddings:
        raise UserError(
            f"model.path: the tokenizer of {resolved} has tokens up to number {largest}, and the model {embeddings} "
            "embeddings; give the tokenizer that the model was trained with"
        )


_SPECIAL = ("bos", "eos", "pad", "unk")


def _hub_shapes(repository: str) -> Shapes | None:
    """Name -> shape of all tensors, from the headers on the hub; None if the hub does not provide them.

    Wrong shapes are then found when the model is loaded.
    """
    from huggingface_hub import get_safetensors_metadata

    try:
        files = get_safetensors_metadata(repository).files_metadata.values()
    except Exception:  # the hub, a mirror or the network can fail in any way
        return None
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def _of_further_layers(unexpected: set[str], model: PreTrainedModel) -> str | None:
    """The first unexpected tensor whose name differs from one of the model's names only in a layer's number, or None.

    It is always None for a model with additional layers that predict several tokens ahead.
    """
    if getattr(model.config.get_text_config(), "num_nextn_predict_layers", None):
        return None
    patterns = {_pattern(name) for name in model.state_dict()}
    return next((name for name in sorted(unexpected) if _pattern(name) in patterns and _pattern(name) != name), None)


def _odd_expert(shapes: Shapes) -> str:
    """What prevents the experts of a layer from being put together, as the rest of a sentence; "" if nothing does."""
    experts = {match.groups(): shape for name, shape in shapes.items() if (match := _EXPERT.fullmatch(name))}
    layers, numbers, kinds = ({key[part] for key in experts} for part in range(3))
    for key in itertools.product(sorted(layers), sorted(numbers, key=int), sorted(kinds)):
        if key not in experts:
            return f"lacks weights that its config.json asks for: no {'.'.join(key)}; give the whole model"
    for (layer, number, kind), shape in sorted(experts.items()):
        usual = Counter(other for key, other in experts.items() if key[2] == kind).most_common(1)[0][0]
        if shape != usual:
            name = ".".join((layer, number, kind))
            return f"has {name} of shape {list(shape)}, and the other experts of {list(usual)}; give the whole model"
    return ""


_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")
"""Name of a tensor of one expert: the name of the layer's experts, the expert's number, the name in the expert."""


def _pattern(name: str) -> str:
    """A tensor's name with `*` in place of the numbers of layers and experts."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)
