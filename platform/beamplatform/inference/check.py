"""Does an export fit its base model? Answered from file headers, before any model is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError
from beamplatform.inference.engine import Export
from beamplatform.models import skeleton

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"

_ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?"
)


@dataclass(frozen=True)
class _Layer:
    """The layer one pair of factors was made for: A is [r, inputs], B is [outputs, r]."""

    inputs: int
    outputs: int
    is_embedding: bool

    @property
    def weight(self) -> tuple[int, int]:
        """The layer's weight: [outputs, inputs], of an embedding [tokens, width]."""
        return (self.inputs, self.outputs) if self.is_embedding else (self.outputs, self.inputs)


def check_export(base_model: str, export: Export) -> None:
    """Check that an export is complete and made from this base model.

    Module names and tensor shapes are compared. A base model of the same architecture and size with other
    weights (a chat model for its foundation model) cannot be told apart this way.

    Args:
        base_model: a folder or a hub id. Of a folder the headers of its safetensors files are read; otherwise
            and where headers alone do not settle it, the model is built from its config without weights.
        export: the adapter or merged model.

    Raises:
        UserError: the folder, its config or its safetensors are missing, it holds pickled weights only, it
            is not a LoRA adapter, or it does not fit: the first module or tensor that differs is named, with
            both shapes.
    """
    folder = Path(export.path)
    if not folder.is_dir():
        raise UserError(f"no {export.kind} folder at {folder}")
    if export.kind == "adapter":
        _check_adapter(base_model, folder)
    else:
        _check_merged(base_model, folder)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the content of a LoRA adapter's `adapter_config.json`.

    Raises:
        UserError: the file is missing or is not the config of a LoRA adapter.
    """
    path = folder / ADAPTER_CONFIG
    trial = f"; did you mean {folder / 'export'}?" if (folder / "export").is_dir() else ""
    holds = f"an adapter's folder holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, a merged model's {MODEL_CONFIG}"
    config = _read_json(path, holds + trial)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type must be LORA, found {config.get('peft_type')!r}")
    return config


def _check_adapter(base_model: str, folder: Path) -> None:
    read_adapter_config(folder)
    layers = _adapter_layers(folder)
    mismatch = "no weights"
    base_shapes = _folder_shapes(Path(base_model))
    if base_shapes is not None:
        mismatch = _first_mismatch(layers, base_shapes)
    # Headers say neither that a head is tied to the embedding nor that a layer stores its weight transposed.
    if mismatch:
        mismatch = _first_mismatch(layers, _layer_shapes(skeleton(base_model)))
    if mismatch:
        raise UserError(f"adapter {folder} was not made for the base model {base_model}: {mismatch}")


def _adapter_layers(folder: Path) -> dict[str, _Layer]:
    """Read, by module name, the layers an adapter's factors belong to."""
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings: set[str] = set()
    for key, shape in _header_shapes(_weights_file(folder, ADAPTER_WEIGHTS)).items():
        if match := _ADAPTER_KEY.fullmatch(key):
            factors.setdefault(match["module"], {})[match["factor"]] = shape
            if match["embedding"]:
                embeddings.add(match["module"])
    if not factors:
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: holds no LoRA factors")
    layers = {}
    for module, pair in factors.items():
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None:
            raise UserError(f"{folder / ADAPTER_WEIGHTS}: {module} lacks lora_{'B' if a else 'A'}")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS}: {module} has lora_A {list(a)} and lora_B {list(b)}, "
                "expected [r, inputs] and [outputs, r]"
            )
        layers[module] = _Layer(inputs=a[1], outputs=b[0], is_embedding=module in embeddings)
    return layers


def _first_mismatch(layers: Mapping[str, _Layer], base_shapes: Shapes) -> str:
    """Describe the first layer the base model does not have in this shape; "" when all fit."""
    for module, layer in layers.items():
        shape = base_shapes.get(f"{module}.weight")
        if shape is None:
            return f"it has no module {module}"
        if shape != layer.weight:
            return f"{module} has a weight of shape {list(shape)}, the adapter needs {list(layer.weight)}"
    return ""


def _check_merged(base_model: str, folder: Path) -> None:
    _read_json(folder / MODEL_CONFIG, "a merged model's folder holds config.json and safetensors weights")
    shapes = _folder_shapes(folder)
    if shapes is None:
        shapes = _header_shapes(_weights_file(folder, MODEL_WEIGHTS))
    base_shapes = _folder_shapes(Path(base_model))
    if base_shapes is None:
        state = skeleton(base_model).state_dict()
        base_shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shared = [name for name in shapes if name in base_shapes]
    if not shared:
        raise UserError(
            f"merged model {folder} was not made from the base model {base_model}: they share no tensor, "
            f"the first here is {next(iter(shapes), '(none)')}"
        )
    for name in shared:
        if shapes[name] != base_shapes[name]:
            raise UserError(
                f"merged model {folder} was not made from the base model {base_model}: {name} has shape "
                f"{list(shapes[name])}, in the base model {list(base_shapes[name])}"
            )


def _folder_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Read the tensor shapes of a model folder; None when it is no folder or has no safetensors."""
    index = folder / f"{MODEL_WEIGHTS}.index.json"
    if index.is_file():
        weight_map = _read_json(index, "").get("weight_map", {})
        shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(set(weight_map.values())):
            shapes |= _header_shapes(_weights_file(folder, name))
        return shapes
    if (folder / MODEL_WEIGHTS).is_file():
        return _header_shapes(folder / MODEL_WEIGHTS)
    return None


def _weights_file(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    if pickles := sorted(p.name for p in folder.glob("*.bin")):
        raise UserError(
            f"{folder}: no {name}, only {pickles[0]}; pickled weights can run code and are not loaded, "
            "save them as safetensors"
        )
    raise UserError(f"{folder}: no {name}")


def _header_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_json(path: Path, expectation: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {expectation}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _layer_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the weight shapes of linear layers as [outputs, inputs], of embeddings as they are."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            shapes[f"{name}.weight"] = tuple(module.weight.shape)
        elif isinstance(module, Conv1D):
            shapes[f"{name}.weight"] = tuple(module.weight.shape)[::-1]
    return shapes
