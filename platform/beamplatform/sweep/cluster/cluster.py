"""The Ray cluster of a sweep: starts it or connects to it, and says how many trials fit on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from beamplatform.errors import UserError, first_line
from beamplatform.hardware import has_gpu
from beamplatform.sweep.cluster.autoscaler import autoscaler_limits
from beamplatform.sweep.cluster.credentials import adopted
from beamplatform.sweep.cluster.machine_check import ray_logs, token_without_home
from beamplatform.sweep.cluster.network import meet_on_rays_network
from beamplatform.sweep.cluster.placement_groups import held_resources
from beamplatform.training.host_memory import allocator_of_workers

if TYPE_CHECKING:
    from beamplatform.config.sections import TrainingSection


log = logging.getLogger(__name__)

_TRIES = 3


@dataclass(frozen=True)
class Cluster:
    """The resources of a Ray cluster. An autoscaling cluster may show its GPUs only when they are requested.

    Attributes:
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes.
        node_cpus: CPU cores of the largest node; no process can have more.
        grows: whether nodes are added when work waits for them.
        most_cpus, most_gpus: CPU cores and GPUs of all nodes that have been or can be added; 0 if unknown.
    """

    cpus: int
    gpus: int
    node_cpus: int
    grows: bool = False
    most_cpus: int = 0
    most_gpus: int = 0

    def uses_gpu(self, training: TrainingSection) -> bool:
        return training.device == "gpu" or (training.device == "auto" and max(self.gpus, self.most_gpus) > 0)

    def spare(self, training: TrainingSection, concurrent: int) -> int:
        """Return how many GPUs (without GPUs: CPU cores) of the present cluster `concurrent` trials leave free."""
        if self.uses_gpu(training):
            return int(max(0, self.gpus - concurrent * training.most_workers * training.gpus_per_worker))
        return max(0, self.cpus - concurrent * training.most_workers * training.cpus_per_worker)

    def less(self, cpus: int, gpus: int) -> Cluster:
        """Return the cluster without the given cores and GPUs, which something else has taken."""
        return replace(self, cpus=max(0, self.cpus - cpus), gpus=max(0, self.gpus - gpus))

    def concurrent(self, training: TrainingSection, limit: int | None) -> int:
        """How many trials of this size fit at once, at most `limit`; at least one."""
        fit = self._capacity(training, self.cpus, self.gpus)
        if self.grows:  # waiting trials make the cluster grow
            return limit or max(fit + 1, self._capacity(training, self.most_cpus, self.most_gpus))
        if self.uses_gpu(training) and not self.gpus:
            return limit or 1
        return max(1, min(fit, limit or fit))

    def _capacity(self, training: TrainingSection, cpus: int, gpus: int) -> int:
        fit = cpus // (training.most_workers * training.cpus_per_worker)
        if self.uses_gpu(training):
            fit = min(fit, int(gpus / (training.most_workers * training.gpus_per_worker)))
        return fit


def start_ray() -> Cluster:
    """Connect to the cluster at RAY_ADDRESS, or start Ray on this machine with its dashboard on localhost only.

    Raises:
        UserError: neither is possible; the message is one line that says why.
    """
    import ray
    from ray.exceptions import AuthenticationError

    # Ray's processes read these variables when they start. (Ray's own ports cannot be bound to localhost; the token
    # that Ray asks for by default keeps others out.)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no call after a shutdown starts Ray again
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(runtime_env={"worker_process_setup_hook": _first_of_all()})
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            raise UserError(f"RAY_ADDRESS={address}: {first_line(error)}") from error
    else:
        _start_here()
    return cluster_now()


def _start_here() -> None:
    """Start Ray on this machine, with several tries: a loaded machine may be too slow for Ray's time limits.

    Raises:
        UserError: Ray does not start; the message names the folder with Ray's logs.
    """
    import ray

    token_without_home()
    for tries_left in reversed(range(_TRIES)):
        try:
            # Without the dashboard Ray cannot tell that a trial's process has died, and keeps its cores reserved for
            # ever. "local" starts a new Ray, even if an interrupted sweep has left one on this machine.
            ray.init(
                address="local",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                runtime_env={"env_vars": {} if has_gpu() else allocator_of_workers()},
            )
            return
        except Exception as error:  # Ray raises errors of all kinds, plain `Exception` among them
            log.warning("Ray did not start", exc_info=True)
            ray.shutdown()
            if tries_left and not (isinstance(error, OSError) and error.errno):  # a full disk, say, stays full
                continue
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"Ray does not start on this machine ({why}); its logs: {ray_logs()}") from error


def _first_of_all() -> Callable[[], None]:
    """Return the function that every process of this job calls on its node before anything else."""
    adopt = adopted()

    def prepare() -> None:
        adopt()
        meet_on_rays_network()

    return prepare


def cluster_now() -> Cluster:
    """Return what the connected cluster has for this sweep now; nodes and other jobs come and go."""
    import ray

    total = ray.cluster_resources()
    if os.environ.get("RAY_ADDRESS"):
        # Other jobs may share the cluster, so count only what is free and what this job's trials hold.
        free, held = ray.available_resources(), held_resources()
        total = {key: min(total.get(key, 0), free.get(key, 0) + held.get(key, 0)) for key in ("CPU", "GPU")}
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    limits = autoscaler_limits()
    return Cluster(
        int(total.get("CPU", 1)),
        int(total.get("GPU", 0)),
        int(max(nodes, default=1)),
        limits.grows(len(nodes)),
        limits.cpus,
        limits.gpus,
    )
