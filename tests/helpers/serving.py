"""Servers on this machine: a port that is free, and waiting until something answers there."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    """Until `url` answers; fails with the log when the process has ended, or after two minutes."""
    deadline = time.monotonic() + 600
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            said = log.read_text()[-3000:] if log is not None else url
            assert time.monotonic() < deadline and process.poll() is None, said
            time.sleep(0.2)
