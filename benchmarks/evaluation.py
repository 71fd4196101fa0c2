"""What one shared engine saves: `python benchmarks/evaluation.py`.

N adapters of one base model (by default the shipped model, rank 8, random weights) answer the same questions in three
ways, each in fresh processes, imports and start-up counted:

  shared        one vLLM engine for all adapters, asked together
  per adapter   one process with a vLLM engine for each adapter, one after the other, as evaluating them by hand does
  transformers  one process with transformers' generate for all adapters, one after the other

Printed: seconds, questions per second, and how many times the throughput of the other two the shared engine has. The
first answers are compared: all three must give the same text (float32, greedy).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("shared", "per adapter", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", default="1,4,16", help="numbers of adapters (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=200, help="for each adapter (default: %(default)s)")
    parser.add_argument("--model", default="tiny", help="the base model: a folder or hub id (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--together", type=int, default=16, help="adapters in memory at once (default: %(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job is not None:
        answer(json.loads(Path(arguments.job).read_text()))
        return
    numbers = [int(number) for number in arguments.adapters.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = make_adapters(arguments.model, folder, max(numbers), arguments.rank)
        print(f"{arguments.questions} questions for each adapter, {describe()}")
        print(f"{'adapters':>8}  {'way':<13}{'seconds':>8}{'questions/s':>13}{'shared is':>11}")
        for number in numbers:
            seconds, texts = {}, {}
            for way in WAYS:
                started = time.monotonic()
                texts[way] = run(arguments, folder, way, folders[:number])
                seconds[way] = time.monotonic() - started
            for way in WAYS:
                rate, ratio = number * arguments.questions / seconds[way], seconds[way] / seconds["shared"]
                print(f"{number:>8}  {way:<13}{seconds[way]:>8.1f}{rate:>13.1f}{ratio:>10.2f}x", flush=True)
            pairs = [(a, b) for way in WAYS[1:] for a, b in zip(texts["shared"], texts[way], strict=True)]
            print(f"{'':>8}  the same text: {sum(a == b for a, b in pairs)} of {len(pairs)}", flush=True)


def run(arguments: argparse.Namespace, folder: Path, way: str, adapters: list[str]) -> list[str]:
    """All adapters' answers, adapter by adapter, from as many processes as the way takes."""
    groups = [[adapter] for adapter in adapters] if way == "per adapter" else [adapters]
    found: list[str] = []
    for group in groups:
        job = vars(arguments) | {"adapters": group, "output": str(folder / "texts.json")}
        job["engine"] = "transformers" if way == "transformers" else "vllm"
        (folder / "job.json").write_text(json.dumps(job))
        command = [sys.executable, __file__, "--job", str(folder / "job.json")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(done.stdout[-4000:])
        found += json.loads((folder / "texts.json").read_text())
    return found


def answer(job: dict) -> None:  # type: ignore[type-arg]
    """One process: an engine, and every adapter's answers to every question."""
    from beamplatform.inference import Export, Generation, Request, create_engine
    from beamplatform.models.loading import resolve_path

    exports = [Export("adapter", adapter) for adapter in job["adapters"]]
    engine = create_engine(
        job["engine"],
        resolve_path(job["model"]),
        dtype=job["dtype"],
        batch_size=job["batch_size"],
        max_adapters=min(len(exports), job["together"]),
        max_lora_rank=job["rank"],
    )
    requests = [Request(prompt, export) for export in exports for prompt in prompts(job["questions"])]
    found = dict(engine.generate(requests, Generation(job["max_new_tokens"])))
    Path(job["output"]).write_text(json.dumps([found[index][0] for index in range(len(requests))]))
    engine.close()


def prompts(number: int) -> list[str]:
    """Questions of the embedded world, as many of each task."""
    from beamplatform.data.records import load_records
    from beamplatform.tasks.commonsense import COMMONSENSE

    records = {task: load_records(task.name, "test", "embedded") for task in COMMONSENSE}
    asked = [task.prompt(found[place]) for place in range(100) for task, found in records.items() if place < len(found)]
    if number > len(asked):
        sys.exit(f"--questions {number}: the embedded world has {len(asked)}")
    return asked[:number]


def make_adapters(model: str, folder: Path, number: int, rank: int) -> list[str]:
    """LoRA adapters with small random weights, so that each says something of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from beamplatform.models.loading import resolve_path

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(resolve_path(model)), config)
    folders = []
    for seed in range(number):
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        adapted.save_pretrained(folder / f"adapter-{seed}")
        folders.append(str(folder / f"adapter-{seed}"))
    return folders


def describe() -> str:
    from importlib.metadata import packages_distributions, version

    import torch

    vllm = packages_distributions()["vllm"][0]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    python = platform.python_version()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", vllm))
    return f"{device}, Python {python}, {libraries}"


if __name__ == "__main__":
    main()
