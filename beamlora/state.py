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

    def of(self, whole: Tensor) -> Tensor:
        """Of a whole tensor, flattened, the elements that this worker holds."""
        return whole.flatten()[self.start : self.start + self.value.numel()]


def overlap(elements: slice, start: int, size: int) -> tuple[slice, slice]:
    """Of every `step`-th element of a vector those that lie in its stretch [start, start + size).

    Returns:
        where they are in the stretch, and which of `elements` they are (counted from 0).
    """
    first, stop, stride = elements.start, elements.stop, elements.step or 1
    count = -(-(stop - first) // stride)
    begin = min(count, max(0, -(-(start - first) // stride)))
    end = min(count, max(begin, -(-(start + size - first) // stride)))
    offset = first + begin * stride - start
    here = slice(offset, offset + (end - begin) * stride, stride) if end > begin else slice(0, 0)
    return here, slice(begin, end)
