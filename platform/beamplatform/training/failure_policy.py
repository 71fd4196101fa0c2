"""Which failures of a training run are retried, and Ray's trainer with this policy."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Sequence
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from beamplatform.config.trial import Trial
from beamplatform.errors import UserError

log = logging.getLogger(__name__)


class ResilientTrainer(TorchTrainer):
    """Ray's trainer, but it retries only failures that may not recur, and leaves nothing behind when it is killed."""

    def _create_default_callbacks(self) -> list[Any]:
        # Ray's cleaner is a detached actor, which outlives the sweep and queries the dashboard. The module
        # `sweep.cluster.placement_groups` does its work instead.
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = _RetryLostWorkers(self.run_config.failure_config)
        if self.scaling_config.elasticity_enabled:
            counts = Trial.model_validate(self.train_loop_config["trial"]).training.worker_counts
            arguments["scaling_policy"] = _WholeShares(self.scaling_config, counts)
        return super()._initialize_and_run_controller(**arguments)


class _WholeShares(ElasticScalingPolicy):
    """Scales a run to the largest number of workers that fit and share the global batch evenly."""

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._counts = list(counts)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._counts if count <= room), default=0)


class _RetryLostWorkers(DefaultFailurePolicy):
    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if comes_again(getattr(training_failed_error, "worker_failures", {}).values()):
            log.error("not retried, because the same error would recur: %s", training_failed_error)
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


_CERTAIN = (FloatingPointError, ValueError, TypeError, LookupError, AttributeError, ImportError, UserError)
_CERTAIN_ERRNO = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip


def comes_again(failures: Collection[BaseException]) -> bool:
    """Whether workers would fail again in the same way, as with a non-finite loss, a full disk or a bug."""
    if any(isinstance(failure, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError) for failure in failures):
        return False  # a worker was lost, which may have caused the other workers' errors
    return any(
        isinstance(failure, _CERTAIN) or (isinstance(failure, OSError) and failure.errno in _CERTAIN_ERRNO)
        for failure in failures
    )
