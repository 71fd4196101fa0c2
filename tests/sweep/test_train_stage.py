"""The stage "train" where there is nothing left to train."""

from __future__ import annotations

from typing import Any

import ray

from beamplatform.sweep.train_stage import Outcome, train_trials


def test_a_sweep_that_died_in_its_evaluation_has_nothing_to_train(trial) -> None:
    unused: dict[str, Any] = {"progress": None, "recorder": None}
    found = train_trials([trial("lora")], [], [], storage="", concurrent=1, use_gpu=False, **unused)
    assert found == Outcome({}, {}) and not ray.is_initialized()
