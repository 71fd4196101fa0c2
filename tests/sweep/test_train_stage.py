"""The stage "train" where there is nothing left to train."""

from __future__ import annotations

import ray

from beamplatform.sweep.train_stage import Listed, Listener, train_trials


def test_a_sweep_that_died_in_its_evaluation_has_nothing_to_train() -> None:
    train_trials(Listed([]), Listener(), storage="", concurrent=1, use_gpu=False)
    assert not ray.is_initialized()
