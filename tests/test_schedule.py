"""Learning rates: the same numbers as transformers' schedules."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from beamplatform.methods.lr_schedule import learning_rate_factor, warmup_steps


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_equal_to_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=7, num_training_steps=50)
    for step in range(50):
        ours = learning_rate_factor(step, total_steps=50, warmup=7, schedule=schedule)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_constant_after_warmup() -> None:
    factors = [learning_rate_factor(s, total_steps=10, warmup=2, schedule="constant") for s in range(10)]
    assert factors == [0.0, 0.5] + [1.0] * 8


def test_warmup_counts_steps_or_a_share() -> None:
    assert warmup_steps(100, 4000) == 100
    assert warmup_steps(0.03, 101) == 4, "rounded up, as transformers does"
