"""The Ray cluster that a sweep runs on: started or connected to, and how much fits on it."""

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
    """The Ray cluster this sweep runs on; an autoscaling one may show its GPUs only when they are asked for.

    Attributes:
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes.
        node_cpus: CPU cores of the largest node; no process can have more.
        grows: nodes come when something waits for them.
        most_cpus, most_gpus: of the nodes that can come, with those that have; 0 where nobody knows.
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
        """GPUs, or else CPU cores, that this many trials at once leave free, as far as the cluster shows them now."""
        if self.uses_gpu(training):
            return int(max(0, self.gpus - concurrent * training.most_workers * training.gpus_per_worker))
        return max(0, self.cpus - concurrent * training.most_workers * training.cpus_per_worker)

    def less(self, cpus: int, gpus: int) -> Cluster:
        """Without what something else has taken."""
        return replace(self, cpus=max(0, self.cpus - cpus), gpus=max(0, self.gpus - gpus))

    def concurrent(self, training: TrainingSection, limit: int | None) -> int:
        """How many trials of this size fit at once, at most `limit`; at least one."""
        fit = self._capacity(training, self.cpus, self.gpus)
        if self.grows:  # what waits makes the cluster larger
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
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine, its dashboard on localhost only.

    Raises:
        UserError: neither is possible; one line says why.
    """
    import ray
    from ray.exceptions import AuthenticationError

    # Read when Ray's processes are made. (Ray's own ports cannot be bound to localhost; the token that Ray asks for by
    # default keeps others out.)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no call made after a shutdown starts it again
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
    """Start Ray on this machine. A loaded machine may be too slow for Ray's time limits, so a second try is worth it.

    Raises:
        UserError: it does not start; names the folder with Ray's logs.
    """
    import ray

    token_without_home()
    for left in reversed(range(_TRIES)):
        try:
            # Without the dashboard Ray cannot tell that a trial's process has died, and keeps its cores reserved for
            # ever. "local": a new one, whatever an interrupted sweep has left on this machine.
            ray.init(
                address="local",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                runtime_env={"env_vars": {} if has_gpu() else allocator_of_workers()},
            )
            return
        except Exception as error:  # Ray raises all kinds, plain `Exception` among them
            log.warning("Ray did not start", exc_info=True)
            ray.shutdown()
            if left and not (isinstance(error, OSError) and error.errno):  # a full disk stays full
                continue
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"Ray does not start on this machine ({why}); its logs: {ray_logs()}") from error


def _first_of_all() -> Callable[[], None]:
    """What every process of this job does on its node before anything else."""
    adopt = adopted()

    def prepare() -> None:
        adopt()
        meet_on_rays_network()

    return prepare


def cluster_now() -> Cluster:
    """What the cluster that Ray is connected to has for us at this moment; nodes and others' jobs come and go."""
    import ray

    total = ray.cluster_resources()
    if os.environ.get("RAY_ADDRESS"):
        # A cluster may be shared: what is free, and what this job's trials hold themselves.
        free, own = ray.available_resources(), held_resources()
        total = {key: min(total.get(key, 0), free.get(key, 0) + own.get(key, 0)) for key in ("CPU", "GPU")}
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
