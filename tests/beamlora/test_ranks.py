"""Ranks of factors that are cut anywhere, and fragments in files: worked against whole tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from beamlora.fragments import Fragments, write_fragments
from beamlora.ranks import Factor, read_ranks, write_ranks
from beamlora.state import Shard

FACTORS = [Factor((4, 3), 0), Factor((5, 4), 1), Factor((1, 3), 0), Factor((6, 1), 1)]


def whole(factor: Factor) -> torch.Tensor:
    """Value and one moment [2, *shape], every element another number."""
    size = factor.shape[0] * factor.shape[1]
    return torch.arange(1.0, 2 * size + 1).view(2, *factor.shape)


def shards(tensors: torch.Tensor, cuts: tuple[int, ...]) -> list[Shard]:
    flat = tensors.flatten(1)
    bounds = [0, *cuts, flat.shape[1]]
    return [Shard(a, flat[0, a:b], {"exp_avg": flat[1, a:b]}) for a, b in itertools.pairwise(bounds)]


def ranks_of(tensors: torch.Tensor, factor: Factor, ranks: list[int]) -> torch.Tensor:
    """[names, ranks, size]"""
    return tensors[:, ranks] if factor.rank_dim == 0 else tensors[:, :, ranks].transpose(1, 2)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_parts_of_all_workers_are_the_whole_ranks(factor: Factor) -> None:
    tensors, count = whole(factor), factor.shape[factor.rank_dim]
    ranks = [count - 1, 0] if count > 1 else [0]
    size = factor.shape[0] * factor.shape[1]
    for cuts in itertools.combinations_with_replacement(range(size + 1), 2):
        joined = torch.zeros(2, len(ranks), factor.size)
        for shard in shards(tensors, cuts):
            part = torch.zeros_like(joined)
            read_ranks(factor, shard, ranks, ["value", "exp_avg"], part)
            assert not (joined.bool() & part.bool()).any(), "two workers gave the same element"
            joined += part
        assert torch.equal(joined, ranks_of(tensors, factor, ranks)), cuts


@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_writing_changes_these_ranks_alone(factor: Factor) -> None:
    ranks = [factor.shape[factor.rank_dim] - 1]
    new = -torch.arange(1.0, 2 * factor.size + 1).view(2, 1, factor.size)
    expected = whole(factor)
    if factor.rank_dim == 0:
        expected[:, ranks[0]] = new[:, 0]
    else:
        expected[:, :, ranks[0]] = new[:, 0]
    for cut in range(factor.shape[0] * factor.shape[1] + 1):
        tensors = whole(factor)
        for shard in shards(tensors, (cut,)):
            write_ranks(factor, shard, ranks, ["value", "exp_avg"], new)
        assert torch.equal(tensors, expected)


def test_fragments_are_put_together_from_any_number_of_files(tmp_path: Path) -> None:
    tensor = torch.randn(10)
    write_fragments(tmp_path / "a", {"x": (0, tensor[:4]), "y": (0, tensor[:0])}, {"who": "first"})
    write_fragments(tmp_path / "b", {"x": (4, tensor[4:])})
    found = Fragments.from_files([tmp_path / "b", tmp_path / "a"])
    assert found.names == ["x"] and found.size("x") == 10
    assert torch.equal(found.whole("x"), tensor)
    for start, end in itertools.combinations(range(11), 2):
        assert torch.equal(found.read("x", start, end - start), tensor[start:end])
    with pytest.raises(ValueError, match="x: elements 10 to 10 are missing"):
        found.read("x", 8, 3)
    lost = Fragments.from_files([tmp_path / "b"])
    with pytest.raises(ValueError, match="x: elements 2 to 5 are missing"):
        lost.read("x", 2, 4)
