"""The base model: where it lies, its tokenizer, its shapes without its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamplatform.sections import ModelSection

TINY = "tiny"
"""The model.path of the model that is shipped with this package."""


def resolve_path(path: str) -> str:
    """The folder of the shipped model for 'tiny'; any other folder absolute, a hub id as it is.

    Raises:
        UserError: what can only be a folder is none.
    """
    if path == TINY:
        from beamplatform.world import tiny_model_path

        return str(tiny_model_path())
    folder = Path(path).expanduser()
    if not folder.is_dir() and path.startswith(("/", "./", "../", "~")):
        raise UserError(f"model.path: no model folder at {path}; give a folder, a hub id, or {TINY!r}")
    return str(folder.resolve()) if folder.is_dir() else path


def dtype_name(name: str, *, on_gpu: bool) -> str:
    """Of the base model's weights: 'auto' is bfloat16 on a GPU and float32 on a CPU."""
    return name if name != "auto" else "bfloat16" if on_gpu else "float32"


def torch_dtype(name: str, *, on_gpu: bool) -> torch.dtype:
    """As `dtype_name`, PyTorch's own."""
    import torch

    return torch.bfloat16 if dtype_name(name, on_gpu=on_gpu) == "bfloat16" else torch.float32


_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Of NVIDIA, of Windows for its Linux, of AMD."""


def cuda_is_available() -> bool:
    """What PyTorch says; it is not loaded where there is no driver of a GPU."""
    if not any(Path(driver).exists() for driver in _DRIVERS) and shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


def load_base(section: ModelSection, *, on_gpu: bool) -> PreTrainedModel:
    """The base model for training, every parameter frozen; on the CPU, or in shards (`sharding_from_the_start`).

    A hub id is fetched once for a node: the hub's client locks each file in the cache that the node's workers share.

    Raises:
        UserError: the folder or hub id cannot be read.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_path(section.path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch_dtype(section.dtype, on_gpu=on_gpu), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot load {path}: {_why(error)}") from error
    model.config.use_cache = False
    return model.requires_grad_(False)


def _why(error: Exception) -> str:
    """What transformers says, in one line; of a model that is not for everybody the hub says that there is none."""
    why = first_line(error)
    if "gated" in why or "not a valid model identifier" in why:
        why += " (one that is private or gated needs the HF_TOKEN of an account with access, or `hf auth login`)"
    return why


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer, with a padding token (its own, else the end-of-sequence token).

    Raises:
        UserError: the folder or hub id cannot be read.
    """
    from transformers import AutoTokenizer

    resolved = resolve_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot load a tokenizer from {resolved}: {_why(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(path: str) -> Any:
    """The configuration of a folder, hub id or 'tiny'.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoConfig

    resolved = resolve_path(path)
    try:
        return AutoConfig.from_pretrained(resolved)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path: cannot read a model configuration from {resolved}: {_why(error)}; "
            f"allowed: {TINY!r}, a model folder, or a Hugging Face hub id (with network access)"
        ) from error


def skeleton(path: str) -> PreTrainedModel:
    """The model on the meta device: all shapes, no weights, in a second even for 70 billion parameters.

    Raises:
        UserError: the configuration cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(path)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UserError(f"model.path: {resolve_path(path)} is not a causal language model: {_why(error)}") from error
