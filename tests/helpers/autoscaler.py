"""A process with the command line of Ray's autoscaler: from that alone its configuration is known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def autoscaler(folder: Path, configuration: dict[str, Any]) -> Iterator[None]:
    """It runs within the block; the file stays in `folder`, as what `ray up` wrote does."""
    file = folder / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(configuration))
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"--autoscaling-config={file}"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
