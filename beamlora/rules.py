"""The numbers of BeamLoRA as pure functions on tensors.

Equation numbers are those of "BeamLoRA: Beam-Constraint Low-Rank Adaptation" (arXiv 2502.13604). "Reference"
is the authors' published implementation, whose behaviour is the default wherever it differs from the paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Sums of equal scores miss the threshold by rounding alone (0.05 added up twenty times is not 1 in binary):
# differences below this share of the total count as equal.
TOLERANCE = 1e-9


def score_weights(scores: Tensor, temperature: float, scale: Literal["rank", "unit"] = "rank") -> Tensor:
    """The weight of each rank in the forward pass, from the raw scores g [r] (Eq. 4, 5).

    The paper's weights are softmax(g), which sum to 1 ("unit"). The reference multiplies them by r ("rank"),
    so that equal scores give every rank weight 1 and training starts as plain LoRA; the temperature, too, is
    the reference's. Computed in at least float32, whatever the dtype of g.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.to(dtype) / temperature, dim=0)
    return weights * scores.numel() if scale == "rank" else weights


def rank_order(scores: Tensor) -> Tensor:
    """The ranks from the highest score to the lowest; equal scores keep their order."""
    return torch.argsort(scores, descending=True, stable=True)


def _operated(scores: Tensor, total: float, threshold: float, crossing: str) -> Tensor:
    """Eq. 13: the entries of `scores` [n] from the first i on whose sum c_i crosses threshold * total."""
    order = rank_order(scores)
    cumulative = torch.cumsum(scores[order].double(), dim=0)
    slack = TOLERANCE * total if crossing == "greater" else -TOLERANCE * total
    crossed = cumulative > threshold * total + slack
    return order[crossed]


def operated_counts(
    scores: Sequence[Tensor],
    threshold: float,
    *,
    scope: Literal["global", "module"] = "global",
    crossing: Literal["greater", "greater_equal"] = "greater",
) -> list[int]:
    """K of Eq. 13 for every module: how many ranks a beam step replaces there.

    scores: for each module its softmax scores [r] in float64, summing to 1; r may differ between modules.
    scope: "module" looks at each module by itself (paper). "global" pools the ranks of all modules, each
        module's scores scaled to sum to its r, against threshold * sum(r) (reference): K can then be 0 in one
        module and large in another.
    crossing: c_i > p (reference) or c_i >= p (the paper's Eq. 13). The crossing rank itself is operated.

    K is at most floor(r / 2), so that pruned and expanded ranks are disjoint. At threshold 1 it is 0.
    """
    if threshold >= 1:
        return [0] * len(scores)
    sizes = [len(module) for module in scores]
    if scope == "module":
        counts = [len(_operated(module, 1.0, threshold, crossing)) for module in scores]
    else:
        pool = torch.cat([module.double() * len(module) for module in scores])
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(pool.device)
        operated = _operated(pool, float(sum(sizes)), threshold, crossing)
        counts = torch.bincount(owner[operated], minlength=len(sizes)).tolist()
    return [min(count, size // 2) for count, size in zip(counts, sizes, strict=True)]


@dataclass(frozen=True)
class RankPairs:
    """The ranks of a module that are replaced: pruned[j] by a child of parents[j]. Both int64 [K]."""

    pruned: Tensor
    parents: Tensor


def pairing_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one beam step: the same on every worker, whatever was drawn before."""
    digest = hashlib.sha256(f"beamlora {seed} {step}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pair_ranks(scores: Tensor, count: int, generator: torch.Generator, *, assessment: bool = True) -> RankPairs:
    """Pair the `count` lowest ranks of one module at random with its `count` highest.

    Without assessment (an ablation of Table 3) both sets are drawn at random instead, still disjoint.
    """
    order = rank_order(scores).cpu() if assessment else torch.randperm(len(scores), generator=generator)
    expanded, pruned = order[:count], order[len(order) - count :]
    return RankPairs(pruned, expanded[torch.randperm(count, generator=generator)])


def average_scores(scores: Tensor, pairs: RankPairs) -> Tensor:
    """The raw scores g [r] after a beam step: child and parent both get the mean of the pair."""
    pruned, parents = pairs.pruned.to(scores.device), pairs.parents.to(scores.device)
    mean = (scores[pruned] + scores[parents]) / 2
    return scores.index_copy(0, pruned, mean).index_copy(0, parents, mean)
