"""The tensors that a beam step reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ParameterState:
    """A whole parameter with its optimizer state, in full precision (at least float32).

    Attributes:
        value: the weights; the fp32 master copy if training runs in lower precision.
        moments: the optimizer's running averages by name (Adam: exp_avg, exp_avg_sq), each in the shape of `value`.
            Empty before the first optimizer step.
    """

    value: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return `value` and all moments by name."""
        return {"value": self.value, **self.moments}


@dataclass(frozen=True)
class Shard:
    """One worker's contiguous piece of a flattened parameter, with its optimizer state.

    `value` and `moments` are 1-dimensional views of the optimizer's tensors: writing into them changes the optimizer's
    state. Without sharding the piece is the whole parameter. It is empty on a worker that holds none of the parameter.

    Attributes:
        start: index of the piece's first element in the flattened parameter.
        value: the weights in this piece.
        moments: the optimizer's running averages in this piece, by name.
    """

    start: int
    value: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return `value` and all moments by name."""
        return {"value": self.value, **self.moments}

    def of(self, whole: Tensor) -> Tensor:
        """Return this worker's elements of a tensor in the whole parameter's shape, as a 1-dimensional tensor."""
        return whole.flatten()[self.start : self.start + self.value.numel()]


def overlap(elements: slice, start: int, size: int) -> tuple[slice, slice]:
    """Intersect the positions that `elements` selects from a vector with the vector's piece [start, start + size).

    Args:
        elements: a slice with explicit start and stop; its step may be larger than 1.
        start: index of the piece's first element in the vector.
        size: number of elements in the piece.

    Returns:
        The common elements as two slices: their positions inside the piece, and their ordinal numbers among the
        elements that `elements` selects (from 0).
    """
    first, stop, stride = elements.start, elements.stop, elements.step or 1
    count = -(-(stop - first) // stride)
    begin = min(count, max(0, -(-(start - first) // stride)))
    end = min(count, max(begin, -(-(start + size - first) // stride)))
    offset = first + begin * stride - start
    in_piece = slice(offset, offset + (end - begin) * stride, stride) if end > begin else slice(0, 0)
    return in_piece, slice(begin, end)
