"""Reading and writing single ranks of factors that are sharded over the workers.

A factor is sharded as a flattened vector, and the optimizer may cut it anywhere. A rank of A is a row, whose elements
are contiguous; it may be split over two workers. A rank of B is a column, every r-th element; it may be spread over
all workers. In both cases the positions of a rank's elements are an arithmetic progression, so the elements that one
worker holds form a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beamlora.state import Shard, overlap


@dataclass(frozen=True)
class Factor:
    """The shape of one factor, and the positions of its ranks in the flattened factor.

    Attributes:
        shape: the shape of the whole factor.
        rank_dim: 0 for A [r, d_in], whose ranks are rows; 1 for B [d_out, r], whose ranks are columns.
    """

    shape: tuple[int, int]
    rank_dim: int

    @property
    def size(self) -> int:
        """Return the number of elements of one rank."""
        return self.shape[1 - self.rank_dim]

    def whole(self, rank: int) -> slice:
        """Return the positions of a rank's elements in the flattened factor."""
        if self.rank_dim == 0:
            return slice(rank * self.size, (rank + 1) * self.size)
        return slice(rank, rank + self.size * self.shape[1], self.shape[1])

    def is_whole(self, shard: Shard) -> bool:
        """Return whether `shard` holds the whole factor, so that one indexed copy can move many ranks."""
        return shard.start == 0 and shard.value.numel() == self.shape[0] * self.shape[1]

    def part(self, rank: int, shard: Shard) -> tuple[slice, slice]:
        """Return the elements of a rank that lie in `shard`, as a slice of the shard and as a slice of the rank."""
        return overlap(self.whole(rank), shard.start, shard.value.numel())


def read_ranks(factor: Factor, shard: Shard, ranks: Sequence[int], names: Sequence[str], out: Tensor) -> None:
    """Copy this worker's elements of `ranks` into `out` [names, ranks, size].

    `names` are the names of the shard's tensors to copy. All other elements of `out` keep their value.
    """
    tensors = shard.tensors()
    if factor.is_whole(shard):
        chosen = torch.tensor(ranks).to(shard.value.device)
        for i, name in enumerate(names):
            selected = tensors[name].view(factor.shape).index_select(factor.rank_dim, chosen)
            out[i].copy_(selected if factor.rank_dim == 0 else selected.T)
        return
    for j, rank in enumerate(ranks):
        in_shard, in_rank = factor.part(rank, shard)
        for i, name in enumerate(names):
            out[i, j, in_rank] = tensors[name][in_shard].to(out)


def write_ranks(factor: Factor, shard: Shard, ranks: Sequence[int], names: Sequence[str], values: Tensor) -> None:
    """Write `values` [names, ranks, size] into this worker's elements of `ranks`.

    `names` are the names of the shard's tensors to write.
    """
    tensors = shard.tensors()
    if factor.is_whole(shard):
        chosen = torch.tensor(ranks).to(shard.value.device)
        for i, name in enumerate(names):
            new = values[i].to(tensors[name])
            new = new if factor.rank_dim == 0 else new.T
            tensors[name].view(factor.shape).index_copy_(factor.rank_dim, chosen, new)
        return
    for j, rank in enumerate(ranks):
        in_shard, in_rank = factor.part(rank, shard)
        for i, name in enumerate(names):
            tensors[name][in_shard] = values[i, j, in_rank].to(tensors[name])


@torch.no_grad()
def copied(shard: Shard, device: str) -> Shard:
    """Return a copy of a shard, on the CPU ("cpu") or on the shard's own device ("parameter").

    If there is a GPU, the copy on the CPU is in pinned memory, so that copying runs asynchronously during training.
    """

    def copy(tensor: Tensor) -> Tensor:
        if device != "cpu":
            return tensor.detach().clone()
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=torch.cuda.is_available())
        return pinned.copy_(tensor, non_blocking=True)

    return Shard(shard.start, copy(shard.value), {name: copy(moment) for name, moment in shard.moments.items()})
