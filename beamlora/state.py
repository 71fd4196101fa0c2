"""The tensors a beam step reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ParameterState:
    """A parameter as its optimizer sees it, in full precision.

    value: the weights (the fp32 master copy, where training runs in lower precision).
    moments: the optimizer's running averages by name (Adam: exp_avg, exp_avg_sq), each of the value's shape;
        empty before the first optimizer step.
    """

    value: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> ParameterState:
        """The same state with `function` applied to every tensor."""
        return ParameterState(function(self.value), {name: function(m) for name, m in self.moments.items()})


@dataclass(frozen=True)
class Factors:
    """The factors of one layer: a [r, d_in] and b [d_out, r]. Rank i is row i of a and column i of b."""

    a: ParameterState
    b: ParameterState
