"""Assigns examples to batches and batches to workers.

The assignment is a pure function of the seed, so every worker computes the same one.

Length bucketing puts examples of similar length into one batch, which leaves little padding. Packing the examples of a
micro-batch into one row leaves none; attention then needs the boundaries between the examples.
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
"""Number of batches that are sorted by length together. More means less padding, fewer means more mixing."""


@dataclass(frozen=True)
class BatchPlan:
    """The order of a run's batches.

    Attributes:
        lengths: number of tokens of every example.
        global_batch: examples per optimizer step.
        seed: seed of the shuffling.
    """

    lengths: Sequence[int]
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch; the remaining examples are skipped, different ones in each epoch."""
        return len(self.lengths) // self.global_batch

    def from_step(self, step: int) -> Iterator[list[int]]:
        """Yield the example indices of each optimizer step, without end, starting at `step` (counted from 0)."""
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
    """Return the example indices of this worker's micro-batches in one global batch.

    The worker takes every `workers`-th example, so that all workers get similar lengths.
    """
    share = list(batch[worker::workers])
    return [share[i : i + micro_batch] for i in range(0, len(share), micro_batch)]


def collate(examples: Sequence[Example], pad_id: int, device: str | torch.device) -> dict[str, torch.Tensor]:
    """Return right-padded tensors of shape [examples, longest example]: input_ids, attention_mask and labels."""
    import torch

    longest = max(len(example.ids) for example in examples)
    rows = [(example, longest - len(example.ids)) for example in examples]
    return {
        "input_ids": torch.tensor([e.ids + [pad_id] * gap for e, gap in rows], device=device),
        "attention_mask": torch.tensor([[1] * len(e.ids) + [0] * gap for e, gap in rows], device=device),
        "labels": torch.tensor([e.labels + [IGNORED] * gap for e, gap in rows], device=device),
    }


def pack(examples: Sequence[Example], device: str | torch.device) -> dict[str, Any]:
    """Concatenate the examples into one row without padding.

    Returns:
        input_ids, labels and position_ids of shape [1, tokens of all examples], where positions start at 0 in every
        example; and the boundaries between the examples, under the names that transformers' attention functions use.
    """
    import torch

    lengths = [len(example.ids) for example in examples]
    ids = [token for example in examples for token in example.ids]
    # The last token of one example must not be trained to predict the first token of the next.
    labels = [label for example in examples for label in [IGNORED, *example.labels[1:]]]
    ends, longest = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device), max(lengths)
    return {
        "input_ids": torch.tensor([ids], device=device),
        "labels": torch.tensor([labels], device=device),
        "position_ids": torch.tensor([[position for length in lengths for position in range(length)]], device=device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
