"""What does not fit is refused, with the smallest change that would."""

from __future__ import annotations

import re

import pytest

from beamplatform.errors import UserError
from beamplatform.sweep.plan.memory_check import GIB, WorkerMemory, check_memory, room_here, room_on_gpu


def advice(plan, room: int) -> str:
    with pytest.raises(UserError) as caught:
        check_memory(plan, WorkerMemory(room, "a test has"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_fits_passes_and_what_is_unknown_too(plan) -> None:
    one = plan("lora")
    check_memory(one, WorkerMemory(one.largest.memory.total, "just"))
    check_memory(one, None)


def test_the_largest_micro_batch_that_fits_is_named(plan) -> None:
    one = plan("lora", "full")
    needed = one.largest.memory.total
    said = advice(one, needed - 1)
    assert said.startswith("full needs about") and "and a test has" in said
    # 16 examples at once do not fit by a byte; 8 is the next share of a batch of 16.
    assert re.search(r"--set training.micro_batch=8 would fit \(0\.\d GiB\)$", said), said
    smaller = plan("lora", "full", training__micro_batch=8)
    check_memory(smaller, WorkerMemory(needed - 1, ""))


def test_several_changes_where_one_is_not_enough(plan) -> None:
    one = plan("full", training__micro_batch=1, training__workers=2, training__device="gpu", training__global_batch=4)
    # ZeRO-3 and checkpointing are left out, because they do not help a model so small.
    said = advice(one, 3 * one.largest.memory.weights)
    assert re.search(r"--set training.offload_optimizer=true --set model.dtype=bfloat16 would fit", said), said


def test_where_nothing_helps_that_is_said(plan) -> None:
    assert "no setting of these fits (at least 0.7 GiB): a smaller model" in advice(plan("lora"), 1000)


def test_room(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    training = plan("lora", training__workers=2, training__micro_batch=8).preset.training
    here = room_here(training.model_copy(update={"device": "cpu"}))
    alone = room_here(training.model_copy(update={"device": "cpu", "workers": 1}))
    assert here is not None and alone is not None and here.size == alone.size // 2
    quarter = training.model_copy(update={"gpus_per_worker": 0.25})
    assert room_on_gpu(80 * GIB, quarter).size == room_on_gpu(80 * GIB, training).size // 4
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert room_here(training) is None, "a cluster's nodes are another matter"
