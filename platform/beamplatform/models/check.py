"""Are a base model's files whole, and do they belong together? Answered before anything starts, once per content.

The headers of the safetensors files are handed to transformers' own loading as tensors without values. So renamed keys,
tied weights, fused experts and several files are understood as they will be when the model is loaded, and no weight is
read for it.
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
    """Check the files of a base model: configuration, names, shapes and values of the weights, tokenizer.

    Args:
        path: a folder, hub id or 'tiny'. Of a hub id the headers are asked for, no weights are fetched.
        content: hash of the files (`content_hash`). What was found in order is not looked at again.
        trains: the model is to be trained, and not only asked.

    Raises:
        UserError: the first thing that is wrong.
    """
    source = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SOURCES)
    cached_json("checked", (content, version("transformers"), trains, source), lambda: _check(path, trains=trains))


_SOURCES = ("check.py", "loading.py", "weight_files.py")
"""Whose change makes a check look again."""


def check_weights(resolved: str, *, what: str) -> None:
    """Check that the weights of a model's folder are those that its configuration asks for, and finite.

    Raises:
        UserError: names the first tensor that is missing, has another shape, or holds a NaN or infinite value.
    """
    model = skeleton(resolved, what=what)
    refuse_unfitting(model, folder_shapes(Path(resolved)), f"{what}: {resolved}")
    wanted = {name for name, _ in model.named_parameters()}
    for file in folder_files(Path(resolved)):
        # Of other tensors there may be integers: masks and positions that old versions have saved.
        if odd := {name: kind for name, kind in not_floating(file).items() if name in wanted}:
            name, kind = min(odd.items())
            raise UserError(
                f"{what}: {file}: the tensor {name} holds no floating-point numbers ({kind}), as of a quantized model "
                "without its configuration; give the model in float32, bfloat16 or float16"
            )
    refuse_not_finite(folder_files(Path(resolved)), what=what)


def refuse_unfitting(model: PreTrainedModel, shapes: Shapes, where: str) -> None:
    """Check that tensors of these names and shapes make the model whole.

    Args:
        model: from `skeleton`.
        shapes: of the model's safetensors files.
        where: the model's files, for the message.

    Raises:
        UserError: names the first tensor that is missing, has another shape, or is one of a layer too many.
    """
    import torch

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        with quiet_transformers():
            _, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                device_map="meta",
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except RuntimeError as error:  # several tensors of the files make one of the model, such as all experts of a layer
        wrong = _odd_expert(shapes) or "has weights that its config.json does not fit; give the whole model"
        raise UserError(f"{where} {wrong}") from error
    if wrong := incomplete(found):
        raise UserError(f"{where} {_odd_expert(shapes) or wrong}")
    if unknown := _of_further_layers(found["unexpected_keys"], model):
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
    largest = max(tokenizer.vocab_size - 1, *special, *added)  # other special tokens are never made of a text
    if largest >= embeddings:
        raise UserError(
            f"model.path: the tokenizer of {resolved} has tokens up to number {largest}, and the model {embeddings} "
            "embeddings; give the tokenizer that the model was trained with"
        )


_SPECIAL = ("bos", "eos", "pad", "unk")


def _hub_shapes(repository: str) -> Shapes | None:
    """Name -> shape by the headers on the hub; None where the hub does not tell, and loading the model will."""
    from huggingface_hub import get_safetensors_metadata

    try:
        files = get_safetensors_metadata(repository).files_metadata.values()
    except Exception:  # whatever a hub, a mirror or the way to it may answer
        return None
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def _of_further_layers(unexpected: set[str], model: PreTrainedModel) -> str | None:
    """A tensor that differs from one of the model's in a layer's number alone; not of layers that predict ahead."""
    if getattr(model.config.get_text_config(), "num_nextn_predict_layers", None):
        return None
    patterns = {_pattern(name) for name in model.state_dict()}
    return next((name for name in sorted(unexpected) if _pattern(name) in patterns and _pattern(name) != name), None)


def _odd_expert(shapes: Shapes) -> str:
    """What keeps the experts of a layer from being put together, as the rest of a sentence; "" where nothing does."""
    found = {match.groups(): shape for name, shape in shapes.items() if (match := _EXPERT.fullmatch(name))}
    layers, numbers, kinds = ({key[part] for key in found} for part in range(3))
    for key in itertools.product(sorted(layers), sorted(numbers, key=int), sorted(kinds)):
        if key not in found:
            return f"lacks weights that its config.json asks for: no {'.'.join(key)}; give the whole model"
    for (layer, number, kind), shape in sorted(found.items()):
        usual = Counter(other for key, other in found.items() if key[2] == kind).most_common(1)[0][0]
        if shape != usual:
            name = ".".join((layer, number, kind))
            return f"has {name} of shape {list(shape)}, and the other experts of {list(usual)}; give the whole model"
    return ""


_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")
"""A tensor of one expert: the experts of which layer, its number, and its name within the expert."""


def _pattern(name: str) -> str:
    """A tensor's name without the numbers of layers and experts."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)
