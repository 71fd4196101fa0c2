"""The base model: where it lies, its tokenizer, its shapes without its weights."""

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


def load_base(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The base model for training, every parameter frozen; on the CPU, or in shards (`sharding_from_the_start`).

    A hub id is fetched once for a node: the hub's client locks each file in the cache that the node's workers share.

    Raises:
        UserError: as `load_model`.
    """
    model = load_model(path, dtype)
    model.config.use_cache = False
    return model.requires_grad_(False)


def load_model(path: str, dtype: torch.dtype, *, what: str = "model.path") -> PreTrainedModel:
    """A causal language model with its weights, all of which were read and are finite.

    Args:
        path: a folder, hub id or 'tiny'.
        dtype: of the weights in memory.
        what: what names the model, for messages.

    Raises:
        UserError: the model cannot be read, or a tensor is missing, has another shape, or has a NaN or infinite value.
    """
    from transformers import AutoModelForCausalLM

    resolved = resolve_path(path)
    read_config(path, what=what)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            resolved,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below by their names
            trust_remote_code=False,
        )
    except Exception as error:  # a model's files can be wrong in any way
        raise UserError(f"{what}: cannot load {resolved}: {_why(error)}") from error
    if wrong := incomplete(found):
        raise UserError(f"{what}: {resolved} {wrong}")
    refuse_not_finite(weight_files(resolved), what=what)
    return model


def incomplete(found: Mapping[str, Any]) -> str:
    """What transformers found wrong with a model's tensors, as the rest of a sentence; "" where all were there.

    Args:
        found: the loading info of `from_pretrained`.
    """
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return (
            f"lacks weights that its config.json asks for: no {missing[0]}{more}; transformers would train random "
            "ones in their place, give the whole model"
        )
    if different := sorted(found["mismatched_keys"]):
        name, there, wanted = different[0]
        return (
            f"has {name} of shape {list(there)}, where its config.json asks for {list(wanted)}; give the "
            "configuration that these weights were saved with"
        )
    return ""


def weight_files(resolved: str) -> list[Path]:
    """The safetensors files of a folder, or of a hub id's download on this machine (none where there is none).

    Raises:
        UserError: the folder has none.
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
    """Look at every value of safetensors files.

    Raises:
        UserError: names the file and the first tensor with a NaN or infinite value.
    """
    if found := not_finite(files):
        raise UserError(
            f"{what}: {found.file}: the tensor {found.tensor} has values that are NaN or infinite; give a model "
            "whose weights are all finite"
        )


def _why(error: Exception) -> str:
    """What transformers says, in one line; of a model that is not for everybody the hub says that there is none."""
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
    """The model's tokenizer, with a padding token (its own, else the end-of-sequence token).

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
    """The configuration of a folder, hub id or 'tiny'.

    Args:
        path: where it is.
        what: what names the model, for messages.

    Raises:
        UserError: it cannot be read, or is that of a model that is not trained or asked here: one with an adapter,
            with code of its own, quantized, or an encoder-decoder.
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
"""Models that have BERT's option is_decoder, and do not heed it."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing progress bars and printing its report of a loading."""
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
    """The model on the meta device: all shapes, no weights, in a second even for 70 billion parameters.

    Raises:
        UserError: as `read_config`, or the model is no causal language model.
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
    """Whether transformers builds a "causal" model that sees the tokens it is to predict: BERT and its kin, XLNet."""
    config = model.config.get_text_config()
    if getattr(config, "is_decoder", True) is False and config.model_type not in _CAUSAL_WITHOUT_SAYING:
        return True
    return (
        getattr(config, "causal", True) is False  # XLM
        or getattr(config, "attn_type", None) == "bi"  # XLNet
        or getattr(config, "use_bidirectional_attention", None) in (True, "all")  # Gemma for embeddings
    )
