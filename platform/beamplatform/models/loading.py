"""Loads a base model, its configuration, its tokenizer, or its shapes without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError, first_line
from beamplatform.models.weight_files import folder_files, not_finite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
TINY = "tiny"
"""The model.path of the model that is shipped with this package."""

_OWN_CODE = (
    "it needs code of its own (auto_map), which is never run here; give one that transformers has the classes for"
)
_CAUSAL_ONLY = (
    "not a causal language model; allowed: models that predict each token from those before it, such as Llama"
)


def resolve_path(path: str) -> str:
    """The absolute path of a model's folder (for 'tiny', of the shipped model), or the hub id unchanged.

    Raises:
        UserError: the path has the form of a folder's path, but there is no such folder.
    """
    if path == TINY:
        from beamplatform.world import tiny_model_path

        return str(tiny_model_path())
    folder = Path(path).expanduser()
    if not folder.is_dir() and path.startswith(("/", "./", "../", "~")):
        raise UserError(f"model.path: no model folder at {path}; give a folder, a hub id, or {TINY!r}")
    return str(folder.resolve()) if folder.is_dir() else path


def dtype_name(name: str, *, on_gpu: bool) -> str:
    """Name of the base weights' dtype, where 'auto' means bfloat16 on a GPU and float32 on a CPU."""
    return name if name != "auto" else "bfloat16" if on_gpu else "float32"


def torch_dtype(name: str, *, on_gpu: bool) -> torch.dtype:
    """The same as `dtype_name`, but as a PyTorch dtype."""
    import torch

    return torch.bfloat16 if dtype_name(name, on_gpu=on_gpu) == "bfloat16" else torch.float32


def load_base(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the base model for training, with every parameter frozen.

    The model is on the CPU, or in shards inside `sharding_from_the_start`. A model from the hub is downloaded once per
    node: the hub's client locks each file in the cache that the node's workers share.

    Raises:
        UserError: as in `load_model`.
    """
    model = load_model(path, dtype)
    model.config.use_cache = False
    return model.requires_grad_(False)


def load_model(path: str, dtype: torch.dtype, *, what: str = "model.path") -> PreTrainedModel:
    """Load a causal language model, and check that all its weights are present and finite.

    Args:
        path: a folder, hub id or 'tiny'.
        dtype: dtype of the weights in memory.
        what: how error messages name the model.

    Raises:
        UserError: the model cannot be read, or a tensor is missing, has another shape, or has a NaN or infinite value.
    """
    from transformers import AutoModelForCausalLM

    resolved = resolve_path(path)
    read_config(path, what=what)
    try:
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            resolved,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with their names
            trust_remote_code=False,
        )
    except Exception as error:  # a model's files can be wrong in any way
        raise UserError(f"{what}: cannot load {resolved}: {_why(error)}") from error
    if wrong := incomplete(loading_info):
        raise UserError(f"{what}: {resolved} {wrong}")
    refuse_not_finite(weight_files(resolved), what=what)
    return model


def incomplete(loading_info: Mapping[str, Any]) -> str:
    """What is wrong with the tensors of a loaded model, as the rest of a sentence; "" if all are present.

    Args:
        loading_info: the loading info that `from_pretrained` returned.
    """
    if missing := sorted(loading_info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return (
            f"lacks weights that its config.json asks for: no {missing[0]}{more}; transformers would train random "
            "ones in their place, give the whole model"
        )
    if different := sorted(loading_info["mismatched_keys"]):
        name, saved_shape, expected_shape = different[0]
        return (
            f"has {name} of shape {list(saved_shape)}, where its config.json asks for {list(expected_shape)}; give the "
            "configuration that these weights were saved with"
        )
    return ""


def weight_files(resolved: str) -> list[Path]:
    """The safetensors files in a folder, or in a hub id's download on this machine (none without a download).

    Raises:
        UserError: the folder has no safetensors files.
    """
    if Path(resolved).is_dir():
        return folder_files(Path(resolved))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return sorted(Path(snapshot_download(resolved, local_files_only=True)).glob("*.safetensors"))
    except LocalEntryNotFoundError:
        return []


def refuse_not_finite(files: Sequence[Path], *, what: str) -> None:
    """Check that all values in the safetensors files are finite.

    Raises:
        UserError: names the file and the first tensor with a NaN or infinite value.
    """
    if location := not_finite(files):
        raise UserError(
            f"{what}: {location.file}: the tensor {location.tensor} has values that are NaN or infinite; give a model "
            "whose weights are all finite"
        )


def _why(error: Exception) -> str:
    """An error of transformers in one line.

    The hub reports that a private or gated model does not exist. In that case, a hint about access is added.
    """
    if _needs_code(error):
        return _OWN_CODE
    lines = [line.strip() for line in str(error).strip().splitlines()]
    why = " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)
    if not isinstance(error, (OSError, ValueError, RuntimeError)):
        why = f"{type(error).__name__}: {why}"
    if "gated" in why or "not a valid model identifier" in why:
        why += " (one that is private or gated needs the HF_TOKEN of an account with access, or `hf auth login`)"
    return why


def _needs_code(error: Exception) -> bool:
    return "trust_remote_code" in str(error)


def load_tokenizer(path: str) -> Any:
    """Load the model's tokenizer, with a padding token (its own, else the end-of-sequence token).

    Raises:
        UserError: the folder or hub id cannot be read.
    """
    from transformers import AutoTokenizer

    resolved = resolve_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved, trust_remote_code=False)
    except Exception as error:  # a tokenizer's files can be wrong in any way
        raise UserError(f"model.path: cannot load a tokenizer from {resolved}: {_why(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(path: str, *, what: str = "model.path") -> Any:
    """Read a model's configuration.

    Args:
        path: a folder, hub id or 'tiny'.
        what: how error messages name the model.

    Raises:
        UserError: the configuration cannot be read, or the model is not supported here: it has an adapter or its own
            code, is quantized, or is an encoder-decoder.
    """
    from transformers import AutoConfig

    resolved = resolve_path(path)
    if (Path(resolved) / "adapter_config.json").is_file():
        raise UserError(
            f"{what}: {resolved} holds an adapter (adapter_config.json); give the folder of a model without one "
            "(adapters are scored by pipelines/evaluate.py --adapter)"
        )
    try:
        config = AutoConfig.from_pretrained(resolved, trust_remote_code=False)
    except Exception as error:  # a configuration's values can be wrong in any way
        allowed = f"; allowed: {TINY!r}, a model folder, or a Hugging Face hub id (with network access)"
        why = _why(error) if _needs_code(error) else _why(error) + allowed
        raise UserError(f"{what}: cannot read a model configuration from {resolved}: {why}") from error
    for key in ("quantization_config", "compression_config"):
        if getattr(config, key, None) is not None:
            raise UserError(
                f"{what}: {resolved} is quantized ({key} in its config.json), which can neither be trained nor merged "
                "here; give the model in float32, bfloat16 or float16"
            )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{what}: {resolved} is an encoder-decoder ({config.model_type}), {_CAUSAL_ONLY}")
    return config


_CAUSAL_WITHOUT_SAYING = ("gpt_neox", "gpt_neox_japanese")
"""Types of models that have BERT's option is_decoder but ignore it."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing progress bars and from printing its loading report, inside this context."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def skeleton(path: str, *, what: str = "model.path") -> PreTrainedModel:
    """Build the model on the meta device, with all shapes but no weights.

    This takes a second even for 70 billion parameters.

    Raises:
        UserError: as in `read_config`, or the model is not a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, resolved = read_config(path, what=what), resolve_path(path)
    try:
        with quiet_transformers(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UserError(f"{what}: {resolved} is not a causal language model: {_why(error)}") from error
    except Exception as error:  # a configuration's values can be wrong in any way
        raise UserError(f"{what}: the config.json of {resolved} describes no model: {_why(error)}") from error
    if _attends_both_ways(model):
        raise UserError(f"{what}: {resolved} ({config.model_type}) attends to later tokens, it is {_CAUSAL_ONLY}")
    return model


def _attends_both_ways(model: PreTrainedModel) -> bool:
    """Whether a "causal" model of transformers sees the tokens that it is to predict, as BERT and XLNet do."""
    config = model.config.get_text_config()
    if getattr(config, "is_decoder", True) is False and config.model_type not in _CAUSAL_WITHOUT_SAYING:
        return True
    return (
        getattr(config, "causal", True) is False  # XLM
        or getattr(config, "attn_type", None) == "bi"  # XLNet
        or getattr(config, "use_bidirectional_attention", None) in (True, "all")  # Gemma for embeddings
    )
