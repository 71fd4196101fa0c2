"""What loading a base model into ZeRO-3 takes of each worker: `python benchmarks/loading.py`.

A Llama of random weights (by default of about 1 GiB) is written to a temporary folder and loaded by two workers, a LoRA
put on it and DeepSpeed's engine around it, each way in processes of its own:

    whole    every worker loads all of it, then the engine keeps its shard
    shards   as the platform does it: straight into shards, worker 0 filling them layer by layer from the mapped file

and from shards the model is written again, as the export of a merged model does it. Printed for every worker: the most
memory that was taken beyond what the libraries had before, as a ratio to the model's size; and seconds. Memory is
anonymous memory: pages of a mapped file can be dropped, and both workers share them.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from processes import run_workers

WAYS = ("whole", "shards")
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_model(arguments, folder / "model")
        found: dict[str, Any] = {"model_bytes": size}
        for way in WAYS:
            found[way] = measure(way, folder)
        show(found)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))


def write_model(arguments: argparse.Namespace, folder: Path) -> int:
    """A Llama of this shape; returns its bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=arguments.hidden, num_hidden_layers=arguments.layers, vocab_size=arguments.vocabulary,
        intermediate_size=arguments.hidden * 11 // 4, num_attention_heads=arguments.hidden // 64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.nbytes for parameter in model.parameters())


def measure(way: str, folder: Path) -> list[dict[str, float]]:
    """What each worker says of itself."""
    # Without it the C library keeps what is freed, up to blocks of 32 MiB, and that would be measured.
    run_workers(partial(worker, way), WORKERS, folder, {"MALLOC_MMAP_THRESHOLD_": "131072"})
    return [json.loads((folder / f"{way}-{rank}.json").read_text()) for rank in range(WORKERS)]


class Peak:
    """The most anonymous memory of this process since `start`, in bytes; looked at every few milliseconds."""

    def __init__(self) -> None:
        self._most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self) -> None:
        self._before = self._most = self._now()

    def read(self) -> int:
        return max(self._most, self._now()) - self._before

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, self._now())
            time.sleep(0.002)

    @staticmethod
    def _now() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


def worker(way: str, rank: int, workers: int, folder: Path) -> None:
    # What the libraries take is not the model's.
    import deepspeed  # noqa: F401
    import torch
    import transformers.integrations
    import transformers.models.llama.modeling_llama  # noqa: F401
    from peft import LoraConfig, get_peft_model
    from torch import distributed

    from beamplatform.config.sections import TrainingSection
    from beamplatform.models.loading import load_base
    from beamplatform.training.engine import make_engine, sharding_from_the_start, whole_model

    distributed.init_process_group("gloo")
    training = TrainingSection(max_steps=1, workers=workers, zero_stage=3, global_batch=workers, micro_batch=1)
    path = str(folder / "model")
    torch.ones(512, 512) @ torch.ones(512, 512)
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    if way == "shards":
        with sharding_from_the_start(training, bf16=False):
            base = load_base(path, torch.float32)
            model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    else:
        base = load_base(path, torch.float32)
        model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    engine = make_engine(model, training, optimizer, bf16=False)
    found = {"load_bytes": float(peak.read()), "load_seconds": time.perf_counter() - began}
    if way == "shards":
        distributed.barrier()
        peak.start()
        began = time.perf_counter()
        with whole_model(engine, here=rank == 0) as whole:
            if rank == 0:
                whole.merge_and_unload().save_pretrained(folder / "merged")
        distributed.barrier()
        found |= {"export_bytes": float(peak.read()), "export_seconds": time.perf_counter() - began}
    (folder / f"{way}-{rank}.json").write_text(json.dumps(found))
    distributed.barrier()


def show(found: dict[str, Any]) -> None:
    from importlib.metadata import version

    size = found["model_bytes"]
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed"))
    print(f"Model of {size / 2**30:.2f} GiB, {WORKERS} workers, ZeRO 3; {platform.machine()}, {names}")
    print(f"{'':24}" + "".join(f"  worker {rank}" for rank in range(WORKERS)) + "  seconds")
    for title, way, what in (
        ("loading, every one whole", "whole", "load"),
        ("loading into shards", "shards", "load"),
        ("exporting from shards", "shards", "export"),
    ):
        rows = found[way]
        cells = "".join(f"{row[f'{what}_bytes'] / size:10.2f}" for row in rows)
        print(f"{title:24}{cells}{max(row[f'{what}_seconds'] for row in rows):9.1f}")


if __name__ == "__main__":
    main()
