"""The tensors a beam step reads and writes."""

from __future__ import annotations

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

    def tensors(self) -> dict[str, Tensor]:
        """Value and moments by name."""
        return {"value": self.value, **self.moments}


@dataclass(frozen=True)
class Shard:
    """One worker's stretch of a parameter: of the flattened parameter, the elements from `start` on.

    value, moments: 1-dimensional views of what the optimizer holds, so that writing into them changes it. Without
        sharding the stretch is the whole parameter; a worker without a part in it has an empty one.
    """

    start: int
    value: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Value and moments by name."""
        return {"value": self.value, **self.moments}
