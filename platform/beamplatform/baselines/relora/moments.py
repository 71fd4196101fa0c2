"""Pruning an optimizer's moments at a restart, as `magnitude_pruning_` and `random_pruning_` of the authors' code."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def prune_moments(moments: Mapping[str, Tensor], prune: float, draw: Tensor | None) -> dict[str, Tensor]:
    """Every moment pruned, and Adam's first one where the second is gone.

    Without the latter, Adam would divide what is left of a first moment by eps alone: B is zero after a restart, so
    that the gradient of A is zero and no second moment comes after.

    Args:
        prune: the share set to zero.
        draw: numbers in [0, 1) of the moments' shape, by which elements are chosen; None: the largest are kept.
    """
    pruned = {
        name: keep_largest(moment, prune) if draw is None else keep_drawn(moment, prune, draw)
        for name, moment in moments.items()
    }
    if "exp_avg" in pruned and "exp_avg_sq" in pruned:
        pruned["exp_avg"] = torch.where(pruned["exp_avg_sq"] == 0, 0.0, pruned["exp_avg"])
    return pruned


def keep_largest(moment: Tensor, prune: float) -> Tensor:
    """The moment with its smallest elements by magnitude set to zero: a share `prune` of them, rounded up."""
    cut = math.ceil(prune * moment.numel())
    if cut == 0:
        return moment.clone()
    # Not torch.quantile, which the authors' code uses: it refuses tensors of more than 16 million elements.
    threshold = moment.abs().flatten().kthvalue(cut).values
    return torch.where(moment.abs() > threshold, moment, torch.zeros_like(moment))


def keep_drawn(moment: Tensor, prune: float, draw: Tensor) -> Tensor:
    """The moment with the elements set to zero whose number in `draw` [0, 1) is below `prune`."""
    return torch.where(draw.to(moment.device) >= prune, moment, torch.zeros_like(moment))
