"""Which GPUs this machine has: the one place that knows."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

_SECONDS = 20.0
"""The driver of a machine with eight GPUs takes several seconds to wake up where nothing uses it."""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Device files of NVIDIA's driver, and of its driver in Windows's Linux."""


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, or RAY_ADDRESS names a cluster, whose nodes may have some.

    PyTorch is not loaded for it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return bool(os.environ.get("RAY_ADDRESS")) or (not hidden and bool(gpus()))


def cuda_is_available() -> bool:
    """Whether PyTorch, in this process, can compute on a GPU. It is not loaded where there is no driver."""
    if not any(Path(driver).exists() for driver in _DRIVERS) and shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def gpus() -> tuple[dict[str, str], ...]:
    """The name, memory ("81559 MiB") and driver of each NVIDIA GPU of this machine; none where there is no driver.

    The driver is asked: `nvidia-smi` is also there where the driver is not, such as in a container without GPUs.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    line = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return tuple({"name": row[0], "memory": row[1], "driver": row[2]} for row in rows if len(row) == 3)
