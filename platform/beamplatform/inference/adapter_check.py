"""Checks from a LoRA adapter's two files that the adapter fits its base model and that an engine can serve it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError, first_line, shortened
from beamplatform.methods.targets import names_layer
from beamplatform.models.loading import refuse_not_finite, skeleton
from beamplatform.models.weight_files import (
    Shapes,
    file_shapes,
    folder_shapes,
    has_weights,
    not_floating,
    read_json,
    weights_file,
)

if TYPE_CHECKING:
    from torch import nn

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

SERVED = frozenset((
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "lora_dropout", "init_lora_weights", "eva_config", "corda_config", "lora_ga_config",
    "ensure_weight_tying", "qalora_group_size", "megatron_core", "runtime_config",
))  # fmt: skip
"""Keys of an adapter's configuration that every engine supports, or that have no effect after training."""

PEFT_ONLY = frozenset((
    "use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "use_bdlora", "kasa_config", "velora_config",
    "monteclora_config", "alora_invocation_tokens",
))  # fmt: skip
"""Keys that PEFT supports, and therefore the transformers engine."""

_TRAINING_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights that leave the base weights unchanged; the other values change them."""

_SWITCHES = ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out")
"""Keys for which PEFT takes every text as true, even 'false'."""

_PATTERN = r"(.*\.)?({})$"
"""How PEFT matches a layer's name with a pattern of rank_pattern or alpha_pattern."""

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")
_MAGNITUDE = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_magnitude_vector(\.weight)?")


@dataclass(frozen=True)
class _Layer:
    """The layer that a pair of factors was made for: A is [r, inputs], B is [outputs, r]."""

    inputs: int
    outputs: int
    rank: int
    is_embedding: bool

    @property
    def weight(self) -> tuple[int, int]:
        """Shape of the layer's weight: [outputs, inputs], or [tokens, width] for an embedding."""
        return (self.inputs, self.outputs) if self.is_embedding else (self.outputs, self.inputs)


def check_adapter(base_model: str, folder: Path) -> None:
    """Check a LoRA adapter against its own configuration and its base model; see `check_export`.

    Raises:
        UserError: names the file, and the key or tensor that is wrong.
    """
    config = read_adapter_config(folder)
    layers = _adapter_layers(folder, config)
    wrong = "no weights"
    if has_weights(Path(base_model)):
        shapes = folder_shapes(Path(base_model))
        matrices = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
        wrong = _first_mismatch(layers, shapes) or _first_untargeted(layers, _named(config, matrices))
    # File headers do not say whether a head is tied to the embedding or a layer stores its weight transposed.
    if wrong:
        base = skeleton(base_model)
        wrong = _first_mismatch(layers, _layer_shapes(base))
        if wrong:
            raise UserError(f"adapter {folder} was not made for the base model {base_model}: {wrong}")
        wrong = _first_untargeted(layers, _targeted(config, base, folder))
    if wrong:
        raise UserError(f"{folder / ADAPTER_WEIGHTS} {wrong}")
    refuse_not_finite([folder / ADAPTER_WEIGHTS], what=f"adapter {folder}")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read a LoRA adapter's `adapter_config.json`, and check the types and ranges of its values.

    Raises:
        UserError: the file is missing, is not the config of a LoRA adapter, or has a wrong value.
    """
    path = folder / ADAPTER_CONFIG
    hint = f"; did you mean {folder / 'export'}?" if (folder / "export").is_dir() else ""
    expectation = f"an adapter's folder holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, a merged model's config.json"
    config = read_json(path, expectation + hint)
    if (kind := config.get("peft_type")) != "LORA":
        plain = " (beamlora.export_lora writes a plain LoRA)" if kind == "BEAMLORA" else ""
        raise UserError(f"{path}: peft_type must be LORA, found {kind!r}{plain}")
    _check_values(config, path)
    for key, value in config.items():
        if key not in SERVED | PEFT_ONLY and is_set(value):
            raise UserError(
                f"{path}: {key}={value!r} is more than low-rank factors, which are all that an engine applies; merge "
                "the adapter (PEFT's merge_and_unload), and score the merged model"
            )
    return config


def is_set(value: object) -> bool:
    """Whether a key of an adapter's configuration is set to anything but its neutral value."""
    return value not in (None, False, "none", "", [], {})


def adapter_rank(folder: Path) -> int:
    """The largest rank of an adapter's layers."""
    config = read_adapter_config(folder)
    return max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)


def _check_values(config: Mapping[str, Any], path: Path) -> None:
    """Refuse values of a type or range that PEFT itself never writes."""
    start = config.get("init_lora_weights", True)
    targets, dropout = config.get("target_modules"), config.get("lora_dropout", 0.0)
    requirements = {
        "r": (_is_rank(config.get("r")), "a whole number, at least 1"),
        "lora_alpha": (_is_number(config.get("lora_alpha")) and config["lora_alpha"] != 0, "a number other than 0"),
        "lora_dropout": (_is_number(dropout) and 0 <= dropout <= 1, "a number from 0 to 1"),
        **{key: (isinstance(config.get(key, False), bool | None), "true or false") for key in _SWITCHES},
        "target_modules": (
            isinstance(targets, str) or _all(targets, list, lambda name: isinstance(name, str)),
            "a list of layers' names, a pattern, or 'all-linear'",
        ),
        "rank_pattern": (_all(config.get("rank_pattern") or {}, dict, _is_rank), "layers' names with their ranks"),
        "alpha_pattern": (_all(config.get("alpha_pattern") or {}, dict, _is_number), "layers' names with numbers"),
        "init_lora_weights": (
            isinstance(start, bool) or start in _TRAINING_STARTS,
            "a start that leaves the base model's weights alone (save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, or merge it and score the merged model)",
        ),
    }
    for key, (valid, requirement) in requirements.items():
        if not valid:
            actual = f"found {shortened(repr(config[key]))}" if key in config else "it is missing"
            raise UserError(f"{path}: {key} must be {requirement}; {actual}")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or {}:
            try:
                re.compile(_PATTERN.format(pattern))
            except re.error as error:
                raise UserError(f"{path}: {key} has {pattern!r}, which is no regular expression ({error})") from error


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # a float cannot hold a larger integer


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _all(collection: Any, kind: type, good: Callable[[Any], bool]) -> bool:
    """Whether this is a list with only good members, or a dict with only good values."""
    members = collection.values() if isinstance(collection, dict) else collection
    return isinstance(collection, kind) and all(good(member) for member in members)


def _adapter_layers(folder: Path, config: Mapping[str, Any]) -> dict[str, _Layer]:
    """Module name -> the layer that an adapter's factors belong to."""
    path = weights_file(folder, ADAPTER_WEIGHTS)
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings: set[str] = set()
    magnitudes: set[str] = set()
    others: list[str] = []
    for key, shape in file_shapes(path).items():
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match["module"], {})[match["factor"]] = shape
            if match["embedding"]:
                embeddings.add(match["module"])
        elif match := _MAGNITUDE.fullmatch(key):
            magnitudes.add(match["module"])
        else:
            others.append(key)
    if not factors:
        raise UserError(f"{path}: holds no LoRA factors")
    has_own_tensors = any(is_set(config.get(key)) for key in PEFT_ONLY - {"use_dora", "rank_pattern", "alpha_pattern"})
    if others and not has_own_tensors:
        raise UserError(
            f"{path}: {others[0]} is no low-rank factor, and factors are all that an engine applies; merge the adapter "
            "(PEFT's merge_and_unload) and score the merged model, or save it without (save_embedding_layers=False)"
        )
    if magnitudes != (set(factors) if config.get("use_dora") else set()):
        odd = min(magnitudes ^ set(factors) if config.get("use_dora") else magnitudes)
        has = "has a" if odd in magnitudes else "lacks its"
        raise UserError(
            f"{path}: {odd} {has} lora_magnitude_vector, and {ADAPTER_CONFIG} says use_dora={config.get('use_dora')!r}"
        )
    if integers := not_floating(path):
        key, kind = min(integers.items())
        raise UserError(f"{path}: {key} holds no floating-point numbers ({kind}); save it in float32 or bfloat16")
    layers = {}
    for module, pair in factors.items():
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None:
            raise UserError(f"{path}: {module} lacks lora_{'B' if a else 'A'}")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(
                f"{path}: {module} has lora_A {list(a)} and lora_B {list(b)}, expected [r, inputs] and [outputs, r]"
            )
        if a[0] != (rank := _rank_of(module, config)):
            raise UserError(
                f"{path}: {module} has factors of rank {a[0]}, and {ADAPTER_CONFIG} says {rank} (r, rank_pattern)"
            )
        layers[module] = _Layer(inputs=a[1], outputs=b[0], rank=a[0], is_embedding=module in embeddings)
    return layers


def _rank_of(module: str, config: Mapping[str, Any]) -> int:
    """The rank that the configuration gives a layer; the first pattern that matches counts, as in PEFT."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.match(_PATTERN.format(pattern), module):
            return int(rank)
    return int(config["r"])


def _first_mismatch(layers: Mapping[str, _Layer], base_shapes: Shapes) -> str:
    """Describe the first layer that the base model lacks or has in another shape; "" if all layers fit."""
    for module, layer in layers.items():
        shape = base_shapes.get(f"{module}.weight")
        if shape is None:
            return f"it has no module {module}"
        if shape != layer.weight:
            return f"{module} has a weight of shape {list(shape)}, the adapter needs {list(layer.weight)}"
    return ""


def _first_untargeted(layers: Mapping[str, _Layer], targeted: Iterable[str]) -> str:
    """Describe the first layer that the configuration names and the file lacks, or vice versa; "" if there is none."""
    names = set(targeted)
    if missing := sorted(names - layers.keys()):
        return (
            f"lacks the factors of {missing[0]} ({len(missing)} of {len(names)} layers that target_modules in "
            f"{ADAPTER_CONFIG} names); give the whole adapter, or name only the layers that it has"
        )
    if unknown := sorted(layers.keys() - names):
        return (
            f"has factors of {unknown[0]}, which target_modules in {ADAPTER_CONFIG} does not name, so that no engine "
            "would apply them; name all layers that it has"
        )
    return ""


def _named(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """The modules that target_modules names, if it is a list that no other key restricts; else none."""
    targets = config["target_modules"]
    if isinstance(targets, str) or any(is_set(config.get(key)) for key in ("exclude_modules", "layers_to_transform")):
        return []
    return [name for name in modules if any(names_layer(target, name) for target in targets)]


def _targeted(config: Mapping[str, Any], base: nn.Module, folder: Path) -> list[str]:
    """The names of the modules to which PEFT would apply the adapter."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    names = [name.removesuffix(".weight") for name in _layer_shapes(base)]
    if config["target_modules"] == "all-linear":
        others: Any = (base.get_output_embeddings(), base.get_input_embeddings())  # type: ignore[operator]
        return [name for name in names if base.get_submodule(name) not in others]
    try:
        lora_config = LoraConfig(**{key: config[key] for key in keys if key in config})
        return [name for name in names if check_target_module_exists(lora_config, name)]
    except Exception as error:  # PEFT may refuse these values with any error
        raise UserError(f"{folder / ADAPTER_CONFIG}: {first_line(error)}") from error


def _layer_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each weight: [outputs, inputs] for a linear layer, [tokens, width] for an embedding."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            shapes[f"{name}.weight"] = tuple(module.weight.shape)
        elif isinstance(module, Conv1D):
            shapes[f"{name}.weight"] = tuple(module.weight.shape)[::-1]
    return shapes
