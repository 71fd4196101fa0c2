"""Sharded tensors in files: each worker writes its fragments, and any number of workers read what they need."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Fragment = tuple[int, Tensor]
"""A contiguous piece of a flattened tensor: the index of its first element, and its elements (1-dimensional)."""

_STARTS = "starts"


def write_fragments(path: Path, fragments: Mapping[str, Fragment], metadata: Mapping[str, str] | None = None) -> None:
    """Write one worker's fragments, by tensor name, to one safetensors file. Empty fragments are left out."""
    nonempty = {name: fragment for name, fragment in fragments.items() if fragment[1].numel()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, (_, tensor) in nonempty.items()}
    starts = json.dumps({name: start for name, (start, _) in nonempty.items()})
    save_file(tensors, path, metadata={**(metadata or {}), _STARTS: starts})


class Fragments:
    """Tensors whose fragments come from several workers. A file's elements are read only when they are needed."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[int, int, Callable[[int, int], Tensor]]]] = {}

    @classmethod
    def of(cls, fragments: Mapping[str, Fragment]) -> Fragments:
        """Create from tensors in memory, by name. Reading copies them."""
        collection = cls()
        for name, (start, tensor) in fragments.items():
            collection._add(name, start, tensor.numel(), lambda a, b, t=tensor: t[a:b].clone())  # type: ignore[misc]
        return collection

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> Fragments:
        """Create from files that `write_fragments` wrote."""
        collection = cls()
        for path in paths:
            file = safe_open(path, framework="pt")
            starts = json.loads(file.metadata()[_STARTS])
            for name, start in starts.items():
                view = file.get_slice(name)
                collection._add(name, start, view.get_shape()[0], lambda a, b, v=view: v[a:b])  # type: ignore[misc]
        return collection

    def _add(self, name: str, start: int, size: int, read: Callable[[int, int], Tensor]) -> None:
        self._parts.setdefault(name, []).append((start, size, read))

    @property
    def names(self) -> list[str]:
        return sorted(self._parts)

    def below(self, prefix: str) -> Fragments:
        """Return the tensors whose name starts with `prefix`, with the prefix removed from their names."""
        selection = Fragments()
        selection._parts = {n.removeprefix(prefix): parts for n, parts in self._parts.items() if n.startswith(prefix)}
        return selection

    def size(self, name: str) -> int:
        """Return the number of elements of the flattened tensor, up to the end of its last fragment."""
        return max(start + size for start, size, _ in self._parts[name])

    def read(self, name: str, start: int, size: int) -> Tensor:
        """Return `size` elements of a flattened tensor from index `start` on, joined from its fragments.

        Raises:
            ValueError: some of these elements are in no fragment.
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
        """Return all elements of a tensor, flattened."""
        return self.read(name, 0, self.size(name))
