"""Which examples form which batch, on which worker: a pure function of the seed, so that every worker agrees.

Length bucketing: examples of like length stand in one batch, so that little of it is padding. Packing them into one row
saves that, too; then their boundaries keep them apart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beamplatform.data.examples import IGNORED, Example

if TYPE_CHECKING:
    import torch

POOL = 16
"""Batches that are sorted by length together: larger means less padding, smaller means more mixing."""


@dataclass(frozen=True)
class BatchPlan:
    """The order of a run's batches.

    Attributes:
        lengths: tokens of every example.
        global_batch: examples per optimizer step.
        seed: of the shuffling.
    """

    lengths: Sequence[int]
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; the remainder is left out of that pass (another one each time)."""
        return len(self.lengths) // self.global_batch

    def from_step(self, step: int) -> Iterator[list[int]]:
        """Indices of the examples of each optimizer step from `step` (from 0) on, without end."""
        for epoch in itertools.count(step // self.steps_per_epoch):
            batches = self._epoch(epoch)
            yield from (batches[step % self.steps_per_epoch :] if epoch == step // self.steps_per_epoch else batches)

    def _epoch(self, epoch: int) -> list[list[int]]:
        generator = random.Random(f"batches:{self.seed}:{epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        order = order[: self.steps_per_epoch * self.global_batch]
        pool = POOL * self.global_batch
        batches = []
        for start in range(0, len(order), pool):
            ordered = sorted(order[start : start + pool], key=lambda index: self.lengths[index])
            batches += [ordered[i : i + self.global_batch] for i in range(0, len(ordered), self.global_batch)]
        generator.shuffle(batches)
        return batches


def micro_batches(batch: Sequence[int], *, worker: int, workers: int, micro_batch: int) -> list[list[int]]:
    """This worker's share of one global batch, in micro-batches; every worker gets like lengths (strided)."""
    own = list(batch[worker::workers])
    return [own[i : i + micro_batch] for i in range(0, len(own), micro_batch)]


def collate(examples: Sequence[Example], pad_id: int, device: str | torch.device) -> dict[str, torch.Tensor]:
    """Right-padded tensors, each [examples, longest example]: input_ids, attention_mask, labels."""
    import torch

    longest = max(len(example.ids) for example in examples)
    rows = [(example, longest - len(example.ids)) for example in examples]
    return {
        "input_ids": torch.tensor([e.ids + [pad_id] * gap for e, gap in rows], device=device),
        "attention_mask": torch.tensor([[1] * len(e.ids) + [0] * gap for e, gap in rows], device=device),
        "labels": torch.tensor([e.labels + [IGNORED] * gap for e, gap in rows], device=device),
    }


def pack(examples: Sequence[Example], device: str | torch.device) -> dict[str, Any]:
    """Tensors [1, tokens of all examples], one after the other without padding: input_ids, labels, and position_ids,
    which begin at 0 with each; and the boundaries by the names that transformers' attention functions know."""
    import torch

    lengths = [len(example.ids) for example in examples]
    ids = [token for example in examples for token in example.ids]
    # No token of the example before it predicts an example's first.
    labels = [label for example in examples for label in [IGNORED, *example.labels[1:]]]
    ends, longest = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device), max(lengths)
    return {
        "input_ids": torch.tensor([ids], device=device),
        "labels": torch.tensor([labels], device=device),
        "position_ids": torch.tensor([[place for length in lengths for place in range(length)]], device=device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
