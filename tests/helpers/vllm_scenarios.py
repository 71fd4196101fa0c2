"""Runs the vLLM engine through a list of requests, in a process of its own.

vLLM sets random seeds, memory policy and a process group in the process it runs in, which would reach
other tests.

    python vllm_scenarios.py REQUESTS.json ANSWERS.json

REQUESTS: {"base": folder, "prompts": [...], "options": {...}, "requests": [...]}, each request the arguments
of `asking.complete` with "export" as [kind, path] or null, or of `asking.complete_all` with a list "exports" of these;
"ignore": true leaves the adapter out, as an engine that silently asks the base model would.
ANSWERS: for each request the completions, or the text of the UserError it raised.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from asking import complete, complete_all

from beamplatform.errors import UserError
from beamplatform.inference import Export, create_engine
from beamplatform.inference.vllm_engine import VllmEngine


def main(requests_file: str, answers_file: str) -> None:
    job = json.loads(Path(requests_file).read_text())
    before = dict(os.environ)
    engine = create_engine("vllm", job["base"], **job["options"])
    answers: list[Any] = []
    for request in job["requests"]:
        left_out = patch.object(VllmEngine, "_adapter_request", lambda *_: None)
        try:
            with left_out if request.pop("ignore", False) else nullcontext():
                if "exports" in request:
                    exports = [_export(named) for named in request.pop("exports")]
                    answers.append(complete_all(engine, job["prompts"], exports=exports, **request))
                else:
                    answers.append(complete(engine, job["prompts"], export=_export(request.pop("export")), **request))
        except UserError as error:
            answers.append(str(error))
    engine.close()
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CONFIGURE_LOGGING")
    left = [name for name in ours if os.environ.get(name) != before.get(name)]
    Path(answers_file).write_text(json.dumps({"answers": answers, "environment_left_changed": left}))


def _export(named: Any) -> Export | None:
    return Export(*named) if named else None


if __name__ == "__main__":
    main(*sys.argv[1:])
