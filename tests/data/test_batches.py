"""Batches: complete, the same on every worker, and with little padding."""

from __future__ import annotations

import itertools

import pytest

from beamplatform.data.batches import BatchPlan, collate, micro_batches, pack
from beamplatform.data.examples import IGNORED, Example

LENGTHS = [10 + (7 * i) % 40 for i in range(103)]


def steps(plan: BatchPlan, count: int, start: int = 0) -> list[list[int]]:
    return list(itertools.islice(plan.from_step(start), count))


def test_an_epoch_takes_each_example_at_most_once_and_leaves_out_only_the_remainder() -> None:
    plan = BatchPlan(LENGTHS, global_batch=8, seed=0)
    epoch = list(itertools.chain(*steps(plan, plan.steps_per_epoch)))
    assert plan.steps_per_epoch == 12
    assert len(epoch) == len(set(epoch)) == 96
    second = list(itertools.chain(*steps(plan, plan.steps_per_epoch, start=plan.steps_per_epoch)))
    assert set(second) != set(epoch), "another epoch leaves out other examples"


@pytest.mark.parametrize("start", [1, 11, 12, 13, 30])
def test_a_run_that_goes_on_sees_the_batches_it_would_have_seen(start: int) -> None:
    plan = BatchPlan(LENGTHS, global_batch=8, seed=3)
    assert steps(plan, 5, start) == steps(plan, start + 5)[start:]


def test_seeds_differ() -> None:
    assert steps(BatchPlan(LENGTHS, 8, seed=0), 3) != steps(BatchPlan(LENGTHS, 8, seed=1), 3)


@pytest.mark.parametrize(("workers", "micro"), [(1, 8), (2, 4), (2, 2), (4, 1)])
def test_workers_share_a_batch_without_overlap(workers: int, micro: int) -> None:
    batch = list(range(100, 108))
    parts = [micro_batches(batch, worker=w, workers=workers, micro_batch=micro) for w in range(workers)]
    assert sorted(itertools.chain(*itertools.chain(*parts))) == batch
    assert {len(p) for part in parts for p in part} == {micro}


def test_bucketing_saves_padding() -> None:
    plan = BatchPlan(LENGTHS, global_batch=8, seed=0)
    padded = sum(8 * max(LENGTHS[i] for i in batch) for batch in steps(plan, plan.steps_per_epoch))
    real = sum(LENGTHS[i] for batch in steps(plan, plan.steps_per_epoch) for i in batch)
    assert padded / real < 1.15


def test_collate_pads_on_the_right_and_never_counts_padding() -> None:
    batch = collate([Example([5, 6, 7], [IGNORED, 6, 7]), Example([8], [8])], pad_id=0, device="cpu")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


def test_packed_examples_stand_in_one_row_and_none_predicts_the_next() -> None:
    batch = pack([Example([5, 6, 7], [5, 6, 7]), Example([8, 9], [IGNORED, 9])], device="cpu")
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert batch["max_length_q"] == batch["max_length_k"] == 3 and "attention_mask" not in batch
