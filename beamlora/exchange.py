"""Snapshots of sharded factors, and the exchange of ranks between the workers that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beamlora.fragments import Fragment, Fragments
from beamlora.optimizer_access import OptimizerAccess
from beamlora.ranks import Factor, copied, read_ranks, write_ranks
from beamlora.state import Shard
from beamlora.workers import join_parts

PORTION = 16 * 2**20
"""Maximum number of elements per collective of a beam step (float32: 64 MiB). Its last module may exceed this."""

Pairs = dict[str, list[tuple[int, int]]]
"""The (pruned rank, parent rank) pairs of each module, by name."""


@dataclass(frozen=True)
class LayerFactors:
    """The parameters A and B of one layer, and the shapes of the whole parameters."""

    parameters: tuple[nn.Parameter, nn.Parameter]
    factors: tuple[Factor, Factor]

    @property
    def rank_size(self) -> int:
        """Return the number of elements of one rank in A and B together."""
        return self.factors[0].size + self.factors[1].size


class RankExchange:
    """Copies ranks from a snapshot to the current factors, both of which may be sharded over the workers.

    Args:
        access: access to the optimizer's weights and moments.
        layers: the adapted layers by name, in the same order on every worker.
        snapshot_device: "cpu", or "parameter" for the device on which the optimizer keeps the factors.
    """

    def __init__(self, access: OptimizerAccess, layers: Mapping[str, LayerFactors], snapshot_device: str) -> None:
        self._access = access
        self._layers = layers
        self._device = snapshot_device
        self._snapshot: dict[str, tuple[Shard, ...]] = {}

    def take_snapshot(self) -> None:
        """Copy the factors and their moments.

        Each worker copies only its own shards, so that no worker's memory grows with the number of workers.
        """
        self._snapshot = {
            name: tuple(copied(shard, self._device) for shard in self._shards(name)) for name in self._layers
        }

    def drop_snapshot(self) -> None:
        self._snapshot = {}

    def parts(self) -> dict[str, Fragment]:
        """Return this worker's part of the snapshot, keyed by "layer/factor/entry"."""
        self._finish_copies()
        return {
            f"{name}/{kind}/{entry}": (shard.start, tensor)
            for name, shards in self._snapshot.items()
            for kind, shard in zip("ab", shards, strict=True)
            for entry, tensor in shard.tensors().items()
        }

    def load(self, parts: Fragments) -> None:
        """Load this worker's part of a saved snapshot.

        Raises:
            ValueError: the snapshot belongs to other layers, or is incomplete.
        """
        saved: dict[str, dict[str, list[str]]] = {}
        for key in parts.names:
            name, kind, entry = key.rsplit("/", 2)
            saved.setdefault(name, {}).setdefault(kind, []).append(entry)
        unknown, missing = sorted(saved.keys() - self._layers.keys()), sorted(self._layers.keys() - saved.keys())
        if unknown:
            raise ValueError(f"the saved beam search has layers that this model has not: {', '.join(unknown)}")
        if missing:
            raise ValueError(f"the saved beam search lacks the snapshot of {', '.join(missing)}")
        self._snapshot = {
            name: tuple(
                self._load_shard(parts, f"{name}/{kind}", saved[name].get(kind, ["value"]), factor, shard)
                for kind, factor, shard in zip("ab", layer.factors, self._shards(name), strict=True)
            )
            for name, layer in self._layers.items()
        }

    def replace(self, operated: Pairs, *, expansion: bool, history: bool, copy_moments: bool) -> int:
        """Replace pruned ranks by children of their parents (Eq. 6 to 12). This is a collective.

        Args:
            operated: the (pruned rank, parent rank) pairs of each module.
            expansion: if true, children are copies of their parents; else children and their moments are zero.
            history: if true, parents are copied from the snapshot; else from the current factors.
            copy_moments: if true, children take their parents' moments; else the moments of the replaced ranks stay.

        Returns:
            The number of bytes that this worker sent through collectives.
        """
        if history and expansion:
            self._finish_copies()
        entries_of_all = copy_moments or not expansion
        return sum(
            self._replace_portion(portion, expansion, history, entries_of_all) for portion in self._portions(operated)
        )

    def _portions(self, operated: Pairs) -> Iterator[Pairs]:
        """Yield the modules in portions of about PORTION elements, each of which needs one collective."""
        portion: Pairs = {}
        size = 0
        for name, pairs in operated.items():
            portion[name] = pairs
            size += 3 * len(pairs) * self._layers[name].rank_size
            if size > PORTION:
                yield portion
                portion, size = {}, 0
        if portion:
            yield portion

    def _replace_portion(self, operated: Pairs, expansion: bool, history: bool, all_entries: bool) -> int:
        """Replace the pruned ranks of some modules with one collective.

        Each worker copies its elements of the parent ranks into a buffer of zeros. Joining the buffers of all workers
        gives the complete children. Each worker then writes its elements of the children over the pruned ranks.

        Returns:
            The size of the buffer in bytes, or 0 without expansion.
        """
        jobs = []
        for name, pairs in operated.items():
            layer, shards = self._layers[name], self._shards(name)
            sources = self._snapshot[name] if expansion and history else shards
            for parameter, factor, source, shard in zip(layer.parameters, layer.factors, sources, shards, strict=True):
                entries = list(shard.tensors()) if all_entries else ["value"]
                jobs.append((parameter, factor, source, shard, entries, pairs))
        sizes = [len(entries) * len(pairs) * factor.size for _, factor, _, _, entries, pairs in jobs]

        def parts(buffer: Tensor) -> Iterator[Tensor]:
            """Yield each job's view [entries, ranks, size] of the buffer."""
            for part, (_, factor, _, _, entries, pairs) in zip(buffer.split(sizes), jobs, strict=True):
                yield part.view(len(entries), len(pairs), factor.size)

        parameter, _, source, *_ = jobs[0]
        # The buffer is created on the parents' device, so that ranks of a CPU snapshot reach the GPU in one copy.
        buffer = torch.zeros(
            sum(sizes), dtype=torch.promote_types(torch.float32, parameter.dtype), device=source.value.device
        )
        if expansion:
            for values, (_, factor, source, _, entries, pairs) in zip(parts(buffer), jobs, strict=True):
                read_ranks(factor, source, [parent for _, parent in pairs], entries, values)
        buffer = buffer.to(parameter.device)
        if expansion and self._access.sharded:
            join_parts(buffer, self._access.group)
        with torch.no_grad():
            for values, (parameter, factor, _, shard, entries, pairs) in zip(parts(buffer), jobs, strict=True):
                pruned = [rank for rank, _ in pairs]
                write_ranks(factor, shard, pruned, entries, values)
                for start, copy in self._access.copies(parameter):
                    write_ranks(factor, Shard(start, copy), pruned, ["value"], values)
        return buffer.numel() * buffer.element_size() if expansion else 0

    def _load_shard(self, parts: Fragments, prefix: str, entries: list[str], factor: Factor, own: Shard) -> Shard:
        whole_size = factor.shape[0] * factor.shape[1]
        try:
            tensors = {entry: parts.read(f"{prefix}/{entry}", own.start, own.value.numel()) for entry in entries}
        except ValueError as error:
            raise ValueError(f"the saved snapshot does not fit this model or is incomplete: {error}") from None
        if (size := parts.size(f"{prefix}/value")) > whole_size:
            raise ValueError(f"the saved snapshot of {prefix} has {size} values, this layer {whole_size}")
        if self._device != "cpu":
            tensors = {entry: tensor.to(own.value.device) for entry, tensor in tensors.items()}
        return copied(Shard(own.start, tensors.pop("value"), tensors), self._device)

    def _shards(self, name: str) -> tuple[Shard, ...]:
        return tuple(self._access.shard(parameter) for parameter in self._layers[name].parameters)

    def _finish_copies(self) -> None:
        # Copies into pinned memory are asynchronous, and may still be running.
        if self._snapshot and torch.cuda.is_available():
            torch.cuda.synchronize()
