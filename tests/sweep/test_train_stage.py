"""The stage "train" where there is nothing left to train."""

from __future__ import annotations

import ray
from listed import Listed
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from beamplatform.sweep.trials.train_stage import Listener, is_lost, train_trials


def test_a_sweep_that_died_in_its_evaluation_has_nothing_to_train() -> None:
    train_trials(Listed([]), Listener(), storage="", concurrent=1, use_gpu=False)
    assert not ray.is_initialized()


def test_what_counts_as_the_loss_of_what_ran_a_trial() -> None:
    """Of Tune's actor for it, or of the controller that the actor asks; not an error of the trial's own."""
    assert is_lost(ActorDiedError()) and is_lost(ActorUnavailableError("gone", None))
    assert is_lost(RayTaskError("step", "traceback", ActorDiedError()))
    assert not is_lost(RayTaskError("step", "traceback", FloatingPointError("ActorDiedError in its text")))
    assert not is_lost(ValueError()) and not is_lost(None)
