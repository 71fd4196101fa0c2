"""Single ranks of parameters that are sharded over workers: reading them together, writing them in part.

A factor is sharded as a flat vector, wherever the optimizer cut it: a rank of A (a row, one stretch) may lie on two
workers, a rank of B (a column, every r-th element) on all of them. A rank's elements are an arithmetic progression in
either case, so that a worker's part of it is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beamlora.state import Shard, overlap


@dataclass(frozen=True)
class Factor:
    """Where the ranks of one factor lie in its flattened form.

    rank_dim 0: A [r, d_in], whose ranks are rows; 1: B [d_out, r], whose ranks are columns.
    """

    shape: tuple[int, int]
    rank_dim: int

    @property
    def size(self) -> int:
        """Elements of one rank."""
        return self.shape[1 - self.rank_dim]

    def whole(self, rank: int) -> slice:
        """The elements of a rank in the flattened factor."""
        if self.rank_dim == 0:
            return slice(rank * self.size, (rank + 1) * self.size)
        return slice(rank, rank + self.size * self.shape[1], self.shape[1])

    def is_whole(self, shard: Shard) -> bool:
        """Whether all ranks lie in `shard`, so that many of them are one indexed copy."""
        return shard.start == 0 and shard.value.numel() == self.shape[0] * self.shape[1]

    def part(self, rank: int, shard: Shard) -> tuple[slice, slice]:
        """Of a rank's elements those that lie in `shard`: as a slice of the shard, and as a slice of the rank."""
        return overlap(self.whole(rank), shard.start, shard.value.numel())


def read_ranks(factor: Factor, shard: Shard, ranks: Sequence[int], names: Sequence[str], out: Tensor) -> None:
    """Copy this worker's elements of `ranks` into `out` [names, ranks, size]; the others are left as they are."""
    tensors = shard.tensors()
    if factor.is_whole(shard):
        chosen = torch.tensor(ranks).to(shard.value.device)
        for i, name in enumerate(names):
            found = tensors[name].view(factor.shape).index_select(factor.rank_dim, chosen)
            out[i].copy_(found if factor.rank_dim == 0 else found.T)
        return
    for j, rank in enumerate(ranks):
        here, there = factor.part(rank, shard)
        for i, name in enumerate(names):
            out[i, j, there] = tensors[name][here].to(out)


def write_ranks(factor: Factor, shard: Shard, ranks: Sequence[int], names: Sequence[str], values: Tensor) -> None:
    """Set this worker's elements of `ranks` from `values` [names, ranks, size]."""
    tensors = shard.tensors()
    if factor.is_whole(shard):
        chosen = torch.tensor(ranks).to(shard.value.device)
        for i, name in enumerate(names):
            new = values[i].to(tensors[name])
            new = new if factor.rank_dim == 0 else new.T
            tensors[name].view(factor.shape).index_copy_(factor.rank_dim, chosen, new)
        return
    for j, rank in enumerate(ranks):
        here, there = factor.part(rank, shard)
        for i, name in enumerate(names):
            tensors[name][here] = values[i, j, there].to(tensors[name])


@torch.no_grad()
def copied(shard: Shard, device: str) -> Shard:
    """A copy of a shard: on the CPU (in pinned memory where there is a GPU, so that it is copied beside the training),
    or where the shard lies ("parameter")."""

    def copy(tensor: Tensor) -> Tensor:
        if device != "cpu":
            return tensor.detach().clone()
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=torch.cuda.is_available())
        return kept.copy_(tensor, non_blocking=True)

    return Shard(shard.start, copy(shard.value), {name: copy(moment) for name, moment in shard.moments.items()})
