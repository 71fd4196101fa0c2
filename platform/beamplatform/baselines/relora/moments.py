"""Pruning an optimizer's moments at a restart, like `magnitude_pruning_` and `random_pruning_` in the authors' code."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def prune_moments(moments: Mapping[str, Tensor], prune: float, draw: Tensor | None) -> dict[str, Tensor]:
    """Return the moments after pruning. Adam's first moment is also zero wherever its second moment is zero.

    Otherwise Adam would divide the remaining first moment by eps alone. B is zero after a restart, so the gradient of A
    is zero, and the pruned second moment stays zero.

    Args:
        prune: share of the elements that is set to zero.
        draw: random numbers in [0, 1) of the moments' shape, which choose the elements; None = the largest are kept.
    """
    pruned = {
        name: keep_largest(moment, prune) if draw is None else keep_drawn(moment, prune, draw)
        for name, moment in moments.items()
    }
    if "exp_avg" in pruned and "exp_avg_sq" in pruned:
        pruned["exp_avg"] = torch.where(pruned["exp_avg_sq"] == 0, 0.0, pruned["exp_avg"])
    return pruned


def keep_largest(moment: Tensor, prune: float) -> Tensor:
    """Return the moment with its smallest elements by magnitude set to zero: a share of `prune`, rounded up."""
    cut = math.ceil(prune * moment.numel())
    if cut == 0:
        return moment.clone()
    # Not torch.quantile, which the authors' code uses: it refuses tensors of more than 16 million elements.
    threshold = moment.abs().flatten().kthvalue(cut).values
    return torch.where(moment.abs() > threshold, moment, torch.zeros_like(moment))


def keep_drawn(moment: Tensor, prune: float, draw: Tensor) -> Tensor:
    """Return the moment with zeros where the number in `draw`, which is in [0, 1), is below `prune`."""
    return torch.where(draw.to(moment.device) >= prune, moment, torch.zeros_like(moment))
