"""Sharded tensors in files: every worker writes its stretches, any number of workers reads what it needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Fragment = tuple[int, Tensor]
"""Where a stretch starts in the flattened tensor, and its elements (1-dimensional)."""

_STARTS = "starts"


def write_fragments(path: Path, fragments: Mapping[str, Fragment], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file with the stretches of one worker; empty ones are left out."""
    held = {name: part for name, part in fragments.items() if part[1].numel()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, (_, tensor) in held.items()}
    starts = json.dumps({name: start for name, (start, _) in held.items()})
    save_file(tensors, path, metadata={**(metadata or {}), _STARTS: starts})


class Fragments:
    """Tensors whose stretches come from several workers. Files are read when their elements are asked for."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[int, int, Callable[[int, int], Tensor]]]] = {}

    @classmethod
    def of(cls, fragments: Mapping[str, Fragment]) -> Fragments:
        """From tensors in memory, which are copied when read."""
        found = cls()
        for name, (start, tensor) in fragments.items():
            found._add(name, start, tensor.numel(), lambda a, b, t=tensor: t[a:b].clone())  # type: ignore[misc]
        return found

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> Fragments:
        """From files of `write_fragments`."""
        found = cls()
        for path in paths:
            file = safe_open(path, framework="pt")
            starts = json.loads(file.metadata()[_STARTS])
            for name, start in starts.items():
                view = file.get_slice(name)
                found._add(name, start, view.get_shape()[0], lambda a, b, v=view: v[a:b])  # type: ignore[misc]
        return found

    def _add(self, name: str, start: int, size: int, read: Callable[[int, int], Tensor]) -> None:
        self._parts.setdefault(name, []).append((start, size, read))

    @property
    def names(self) -> list[str]:
        return sorted(self._parts)

    def below(self, prefix: str) -> Fragments:
        """Those whose name starts with `prefix`, under the rest of their name."""
        found = Fragments()
        found._parts = {n.removeprefix(prefix): parts for n, parts in self._parts.items() if n.startswith(prefix)}
        return found

    def size(self, name: str) -> int:
        """Elements from the first to the last stretch."""
        return max(start + size for start, size, _ in self._parts[name])

    def read(self, name: str, start: int, size: int) -> Tensor:
        """`size` elements of a tensor from `start` on, put together.

        Raises:
            ValueError: some of them are in no part.
        """
        pieces, position = [], start
        for begin, length, get in sorted(self._parts.get(name, []), key=lambda part: part[0]):
            if begin <= position < begin + length and position < start + size:
                end = min(begin + length, start + size)
                pieces.append(get(position - begin, end - begin))
                position = end
        if position < start + size:
            raise ValueError(f"{name}: elements {position} to {start + size - 1} are missing")
        return torch.cat(pieces) if pieces else torch.empty(0)

    def whole(self, name: str) -> Tensor:
        """All elements, 1-dimensional."""
        return self.read(name, 0, self.size(name))
