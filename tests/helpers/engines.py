"""The same requests to both engines: transformers here, vLLM in a process of its own (`vllm_scenarios.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from asking import complete, complete_all

from beamplatform.inference import Export, create_engine

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="vLLM is not installed (extra 'vllm' with CUDA, the CPU build by its script otherwise)",
)


def transformers_answers(
    base: Path, prompts: list[str], requests: list[dict[str, Any]], batch_size: int = 2
) -> list[Any]:
    engine = create_engine(
        "transformers", str(base), dtype="float32", batch_size=batch_size, max_adapters=4, max_lora_rank=8
    )
    answers: list[Any] = []
    for request in requests:
        if "exports" in request:
            exports = [Export(*named) if named else None for named in request["exports"]]
            answers.append(complete_all(engine, prompts, **{**request, "exports": exports}))
        else:
            export = Export(*request["export"]) if request["export"] else None
            answers.append(complete(engine, prompts, **{**request, "export": export}))
    return answers


def vllm_answers(root: Path, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What `vllm_scenarios.py` makes of `job`."""
    (folder / "requests.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("vllm_scenarios.py")
    done = subprocess.run(
        [sys.executable, script, folder / "requests.json", folder / "answers.json"],
        env={
            **os.environ,
            "PYTHONPATH": f"{root}:{root / 'platform'}:{root / 'tests' / 'helpers'}",
            # One thread: vLLM's spinning threads are many times slower on cores they share with others.
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())
