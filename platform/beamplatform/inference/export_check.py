"""Checks that an export fits its base model, without building a model where the files alone say enough."""

from __future__ import annotations

from pathlib import Path

from beamplatform.errors import UserError
from beamplatform.inference.adapter_check import check_adapter
from beamplatform.inference.engine import Export
from beamplatform.models.check import check_weights
from beamplatform.models.loading import refuse_not_finite, skeleton
from beamplatform.models.weight_files import Shapes, folder_files, folder_shapes, has_weights, read_json

MODEL_CONFIG = "config.json"

_SAYS_NOTHING = ("transformers_version", "dtype", "torch_dtype", "use_cache", "_name_or_path", "architectures")
"""Entries of a model's configuration that do not affect its weights."""


def check_export(base_model: str, export: Export) -> None:
    """Check that an export is complete and made from this base model.

    This compares module names, tensor shapes and an adapter's configuration, and checks that all values are finite. It
    cannot detect a base model of the same architecture and size with other weights, such as a chat model instead of its
    foundation model.

    Args:
        base_model: a folder or a hub id. The headers of a folder's safetensors files are read. For a hub id, or where
            headers are not enough, the model is built from its config without weights.
        export: the adapter or merged model.

    Raises:
        UserError: the folder, its config or its safetensors are missing; it holds only pickled weights; a value is NaN
            or infinite; the adapter is not LoRA or needs more than the engines support; or the export does not fit.
            Then the message names the first module or tensor that differs, with both shapes.
    """
    folder = Path(export.path)
    if not folder.is_dir():
        raise UserError(f"no {export.kind} folder at {folder}")
    if export.kind == "adapter":
        check_adapter(base_model, folder)
    else:
        _check_merged(base_model, folder)


def _check_merged(base_model: str, folder: Path) -> None:
    config = read_json(folder / MODEL_CONFIG, "a merged model's folder holds config.json and safetensors weights")
    shapes, base_shapes = folder_shapes(folder), None
    if has_weights(Path(base_model)):
        base_shapes = folder_shapes(Path(base_model))
    of_base: Shapes = base_shapes or {
        name: tuple(tensor.shape) for name, tensor in skeleton(base_model).state_dict().items()
    }
    where = f"merged model {folder} was not made from the base model {base_model}"
    shared = [name for name in shapes if name in of_base]
    if not shared:
        raise UserError(f"{where}: they share no tensor, the first here is {next(iter(shapes), '(none)')}")
    for name in shared:
        if shapes[name] != of_base[name]:
            raise UserError(f"{where}: {name} has shape {list(shapes[name])}, in the base model {list(of_base[name])}")
    if shapes == base_shapes and _relevant(config) == _relevant(read_json(Path(base_model) / MODEL_CONFIG, "")):
        refuse_not_finite(folder_files(folder), what="merged model")
    else:
        check_weights(str(folder), what="merged model")


def _relevant(config: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in _SAYS_NOTHING}
