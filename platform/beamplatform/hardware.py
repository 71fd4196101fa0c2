"""The one module that finds out which GPUs this machine has."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

_SECONDS = 20.0
"""Time limit of `nvidia-smi`: the driver of eight idle GPUs takes several seconds to wake up."""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Device files of NVIDIA's driver, on Linux and on the Windows Subsystem for Linux."""


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, or RAY_ADDRESS names a cluster, whose nodes may have GPUs.

    This does not load PyTorch.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return bool(os.environ.get("RAY_ADDRESS")) or (not hidden and bool(gpus()))


def cuda_is_available() -> bool:
    """Whether PyTorch can compute on a GPU in this process.

    This does not load PyTorch if the machine has no driver.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS) and shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def gpus() -> tuple[dict[str, str], ...]:
    """Name, memory ("81559 MiB") and driver version of each NVIDIA GPU in this machine; empty without a driver.

    `nvidia-smi` must run successfully, because it can also be present without a driver, as in a container without GPUs.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    line = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        completed = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[part.strip() for part in line.split(",")] for line in completed.stdout.splitlines()]
    return tuple({"name": row[0], "memory": row[1], "driver": row[2]} for row in rows if len(row) == 3)
