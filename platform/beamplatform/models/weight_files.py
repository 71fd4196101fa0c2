"""Reads safetensors files without any deep-learning library: names, shapes, and whether all values are finite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError
from beamplatform.io.disk_cache import cached_for_file

Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
"""Type in a header -> (unsigned integer type of the same size, the bits that every NaN or infinite value has set)."""

_CHUNK = 2**18
"""Number of bytes that are checked at a time: few enough for a processor's cache."""

_ABOUT = "__metadata__"
"""The entry of a header that does not describe a tensor."""


@dataclass(frozen=True)
class NotFinite:
    """A tensor with a value that is NaN or infinite."""

    file: Path
    tensor: str


def folder_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder: all files that the index names or, without an index, the only file.

    Raises:
        UserError: a file is missing, the index cannot be read, or the folder holds pickled weights only.
    """
    index = folder / INDEX
    if not index.is_file():
        return [weights_file(folder, WEIGHTS)]
    weight_map = read_json(index, "").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: weight_map must name the file of each tensor")
    names = set(weight_map.values())
    if WEIGHTS not in names and (folder / WEIGHTS).is_file():  # transformers loads it, but vLLM the indexed files
        raise UserError(
            f"{folder}: holds {WEIGHTS} and also {INDEX}, which names other files; remove what is not the model's"
        )
    return [weights_file(folder, name) for name in sorted(names)]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's safetensors files."""
    return (folder / INDEX).is_file() or (folder / WEIGHTS).is_file()


def folder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors in a model's folder.

    Raises:
        UserError: as in `folder_files`, or a file is truncated or not a safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder_files(folder):
        shapes |= file_shapes(file)
    return shapes


def weights_file(folder: Path, name: str) -> Path:
    """The path of a safetensors file, which must exist.

    Raises:
        UserError: the file is missing.
    """
    path = folder / name
    if path.is_file():
        return path
    if pickles := sorted(p.name for p in folder.glob("*.bin")):
        raise UserError(
            f"{folder}: no {name}, only {pickles[0]}; pickled weights can run code and are not loaded, "
            "save them as safetensors"
        )
    raise UserError(f"{folder}: no {name}")


def file_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors in a file, from its header.

    Raises:
        UserError: the file is truncated, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def not_floating(path: Path) -> dict[str, str]:
    """Name -> type of the tensors in a file that do not hold floating-point numbers.

    The file must be complete (`file_shapes`).
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return {key: kind for key, kind in kinds.items() if kind not in _EXPONENTS}


def not_finite(files: Sequence[Path]) -> NotFinite | None:
    """The first tensor with a NaN or infinite value, or None.

    A large file is read again only after its size or age has changed. The files must be complete (`file_shapes`).
    """
    for file in files:
        name = cached_for_file("finite", file, partial(_first_not_finite, file))
        if name is not None:
            return NotFinite(file, name)
    return None


def read_json(path: Path, expectation: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        UserError: the file is missing (then the message ends with `expectation`), or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {expectation}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _first_not_finite(path: Path) -> str | None:
    """Name of the first tensor in a file with a NaN or infinite value, or None.

    The file is read in chunks, whatever its size.
    """
    import numpy as np

    buffer = bytearray(_CHUNK)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        tensors = [(*about["data_offsets"], name, about["dtype"]) for name, about in header.items() if name != _ABOUT]
        for start, end, name, dtype in sorted(tensors):
            if dtype not in _EXPONENTS:
                continue
            kind, bits = _EXPONENTS[dtype]
            stream.seek(8 + length + start)
            for offset in range(start, end, _CHUNK):
                count = stream.readinto(memoryview(buffer)[: min(_CHUNK, end - offset)])
                values = np.frombuffer(buffer, kind, count // np.dtype(kind).itemsize)
                if np.bitwise_and(values, bits).max() == bits:
                    return str(name)
    return None
