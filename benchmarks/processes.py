"""Processes of benchmarks: what they say of themselves, and workers forked off one that has imported the libraries."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

LIBRARIES = (
    "deepspeed",
    "peft",
    "transformers.integrations",
    "transformers.models.llama.modeling_llama",
    "beamplatform.models.loading",
    "beamplatform.training.run",
)


def status(key: str) -> int:
    """Bytes, of this process, as the kernel tells them."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def forking(libraries: Sequence[str], environment: Mapping[str, str]) -> ForkServerContext:
    """For processes with these libraries, forked off one that the first call starts with this environment."""
    os.environ.update(environment)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(libraries))
    return context


def run_workers(
    work: Callable[[int, int, Path], None], workers: int, folder: Path, environment: Mapping[str, str]
) -> None:
    """Call `work(rank, workers, folder)` in as many processes that meet by torch.distributed's variables.

    Args:
        work: a function of the program's own module.
        workers: how many.
        folder: takes what they print.
        environment: of the processes, with what their C library reads at its start; the same in every call.

    Raises:
        SystemExit: one has failed; with what it printed.
    """
    context = forking(LIBRARIES, {**environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
    port = free_port()
    logs = [folder / f"log-{rank}" for rank in range(workers)]
    places = [(work, rank, workers, port, folder, str(log)) for rank, log in enumerate(logs)]
    processes = [context.Process(target=_run, args=place) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [log for log, process in zip(logs, processes, strict=True) if process.exitcode]
    if failed:
        sys.exit(failed[0].read_text())


def _run(work: Callable[[int, int, Path], None], rank: int, workers: int, port: int, folder: Path, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(rank, workers, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not the interpreter's own end: threads of torch.distributed that still run make that abort
