"""How large the cluster of this head can become: Ray does not tell a driver, but its autoscaler's file says it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_OPTION = "--autoscaling-config="
"""Of the autoscaler's process. What `ray up` wrote stays in the home folder after `ray down`, and counts no more."""


@dataclass(frozen=True)
class AutoscalerLimits:
    """Limits of a cluster that starts nodes when something waits for them.

    Attributes:
        workers: most nodes beside the head.
        cpus, gpus: of all of these; 0 where the configuration does not say.
    """

    workers: int = 0
    cpus: int = 0
    gpus: int = 0

    def grows(self, alive: int) -> bool:
        """Whether it can have more nodes than these, the head among them."""
        return alive - 1 < self.workers


def autoscaler_limits() -> AutoscalerLimits:
    """The limits of the cluster whose head this machine is; none where no autoscaler runs here."""
    file = _configuration() if os.environ.get("RAY_ADDRESS") else None
    if file is None:
        return AutoscalerLimits()
    config: Any = yaml.safe_load(file.read_text(encoding="utf-8"))  # as Ray itself reads it
    workers = int(config.get("max_workers", 0))
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]

    def most(resource: str) -> int:
        """As many of the best nodes as there may be."""
        left, total = workers, 0
        for kind in sorted(kinds, key=lambda kind: kind.get("resources", {}).get(resource, 0), reverse=True):
            count = min(left, int(kind.get("max_workers", 0)))
            total, left = total + count * int(kind.get("resources", {}).get(resource, 0)), left - count
        return total

    return AutoscalerLimits(workers, most("CPU"), most("GPU"))


def _configuration() -> Path | None:
    """The file that a running autoscaler works by."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or ():
            if argument.startswith(_OPTION) and (file := Path(argument.removeprefix(_OPTION)).expanduser()).exists():
                return file
    return None
