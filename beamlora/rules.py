"""The computations of BeamLoRA as pure functions on tensors.

Equation numbers refer to "BeamLoRA: Beam-Constraint Low-Rank Adaptation" (arXiv 2502.13604). "Reference" means the
authors' published implementation. Where it differs from the paper, its behaviour is the default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Differences below this share of the total score count as equal. Otherwise rounding errors alone could decide whether a
# sum of equal scores crosses the threshold: in binary, 0.05 added twenty times is not 1.
TOLERANCE = 1e-9


def score_weights(scores: Tensor, temperature: float, scale: Literal["rank", "unit"] = "rank") -> Tensor:
    """Return the weight of each rank in the forward pass [r], from the raw scores g [r] (Eq. 4, 5).

    The paper's weights are softmax(g), which sum to 1 ("unit"). The reference multiplies them by r ("rank"), so that
    equal scores give every rank weight 1 and training starts as plain LoRA. The temperature also comes from the
    reference. The weights are computed in at least float32, whatever the dtype of g.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.to(dtype) / temperature, dim=0)
    return weights * scores.numel() if scale == "rank" else weights


def rank_order(scores: Tensor) -> Tensor:
    """Return the ranks' indices from the highest score to the lowest. Equal scores keep their order."""
    return torch.argsort(scores, descending=True, stable=True)


def _operated(scores: Tensor, total: float, threshold: float, crossing: str) -> Tensor:
    """Return the indices of the operated entries of `scores` [n] (Eq. 13), in descending order of score.

    An entry is operated if the cumulative score c_i, from the highest score down to this entry, crosses
    threshold * total.
    """
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
    """Return K of Eq. 13 for every module: the number of its operated ranks, which a beam step replaces.

    K is at most floor(r / 2), so that pruned and expanded ranks are disjoint. At threshold 1, K is 0.

    Args:
        scores: the softmax scores [r] of each module in float64, which sum to 1. r may differ between modules.
        threshold: p(t), the share of the total score that is left untouched.
        scope: "module" compares the scores of each module separately (paper). "global" pools the ranks of all modules
            (reference): it scales each module's scores to sum to the module's r, and compares their cumulative sum
            with threshold * sum(r). K can then be 0 in one module and large in another.
        crossing: whether a rank is operated if c_i > p ("greater", reference) or if c_i >= p ("greater_equal", the
            paper's Eq. 13).
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
    """The ranks that a beam step replaces in one module.

    Attributes:
        pruned: the replaced ranks, int64 [K].
        parents: the ranks that are copied, int64 [K]. A child of parents[j] replaces pruned[j].
    """

    pruned: Tensor
    parents: Tensor


def pairing_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of one beam step.

    It depends on nothing but `seed` and `step`, so all workers draw the same numbers.
    """
    digest = hashlib.sha256(f"beamlora {seed} {step}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pair_ranks(scores: Tensor, count: int, generator: torch.Generator, *, assessment: bool = True) -> RankPairs:
    """Pair the `count` lowest-scoring ranks of one module at random with its `count` highest-scoring ranks.

    Without assessment (an ablation of Table 3) the two sets are drawn at random instead. They are still disjoint.
    """
    order = rank_order(scores).cpu() if assessment else torch.randperm(len(scores), generator=generator)
    expanded, pruned = order[:count], order[len(order) - count :]
    return RankPairs(pruned, expanded[torch.randperm(count, generator=generator)])


def average_scores(scores: Tensor, pairs: RankPairs) -> Tensor:
    """Return the raw scores g [r] after a beam step: child and parent both get the mean of their two scores."""
    pruned, parents = pairs.pruned.to(scores.device), pairs.parents.to(scores.device)
    mean = (scores[pruned] + scores[parents]) / 2
    return scores.index_copy(0, pruned, mean).index_copy(0, parents, mean)
