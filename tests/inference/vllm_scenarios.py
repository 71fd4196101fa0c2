"""Runs the vLLM engine through a list of requests, in a process of its own.

vLLM sets random seeds, memory policy and a process group in the process it runs in, which would reach
other tests.

    python vllm_scenarios.py REQUESTS.json ANSWERS.json

REQUESTS: {"base": folder, "prompts": [...], "options": {...}, "requests": [...]}, each request the arguments
of `Engine.generate` with "export" as [kind, path] or null.
ANSWERS: for each request the completions, or the text of the UserError it raised.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError
from beamplatform.inference import Export, create_engine


def main(requests_file: str, answers_file: str) -> None:
    job = json.loads(Path(requests_file).read_text())
    before = dict(os.environ)
    engine = create_engine("vllm", job["base"], **job["options"])
    answers: list[Any] = []
    for request in job["requests"]:
        export = Export(*request.pop("export")) if request["export"] else request.pop("export")
        try:
            answers.append(engine.generate(job["prompts"], export=export, **request))
        except UserError as error:
            answers.append(str(error))
    engine.close()
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CONFIGURE_LOGGING")
    left = [name for name in ours if os.environ.get(name) != before.get(name)]
    Path(answers_file).write_text(json.dumps({"answers": answers, "environment_left_changed": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
