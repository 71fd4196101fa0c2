"""Finds how large the cluster of this head node can grow, from the configuration file of Ray's autoscaler.

Ray has no call that tells a driver.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_OPTION = "--autoscaling-config="
"""Option of the autoscaler's process that names its configuration file.

The file that `ray up` wrote to the home folder is no sign of a running autoscaler: it stays there after `ray down`.
"""


@dataclass(frozen=True)
class AutoscalerLimits:
    """Limits of a cluster that starts nodes when work waits for them.

    Attributes:
        workers: most nodes beside the head node.
        cpus, gpus: most CPU cores and GPUs of these nodes together; 0 if the configuration does not say.
    """

    workers: int = 0
    cpus: int = 0
    gpus: int = 0

    def grows(self, alive: int) -> bool:
        """Whether the cluster can have more than `alive` nodes, which include the head."""
        return alive - 1 < self.workers


def autoscaler_limits() -> AutoscalerLimits:
    """Return the limits of the cluster whose head is this machine; all are 0 if no autoscaler runs here."""
    file = _configuration() if os.environ.get("RAY_ADDRESS") else None
    if file is None:
        return AutoscalerLimits()
    config: Any = yaml.safe_load(file.read_text(encoding="utf-8"))  # as Ray itself reads it
    workers = int(config.get("max_workers", 0))
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]

    def most(resource: str) -> int:
        """The most of a resource that the workers can have together, with the largest nodes taken first."""
        left, total = workers, 0
        for kind in sorted(kinds, key=lambda kind: kind.get("resources", {}).get(resource, 0), reverse=True):
            count = min(left, int(kind.get("max_workers", 0)))
            total, left = total + count * int(kind.get("resources", {}).get(resource, 0)), left - count
        return total

    return AutoscalerLimits(workers, most("CPU"), most("GPU"))


def _configuration() -> Path | None:
    """The configuration file of a running autoscaler."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or ():
            if argument.startswith(_OPTION) and (file := Path(argument.removeprefix(_OPTION)).expanduser()).exists():
                return file
    return None
