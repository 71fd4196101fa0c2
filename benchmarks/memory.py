"""How near the estimate of memory comes: `python benchmarks/memory.py`.

Llamas of random weights are trained for three steps by the platform's own workers (two of them, DeepSpeed, gloo), each
case in fresh processes, on sequences that all have the full length. Measured is what a worker takes beyond what it had
when all libraries were loaded and had been used, before the model: the kernel's own peak, from the first step on.
Printed beside it is what `--dry-run` says of the same trial, and measured / predicted.

What is freed goes back to the system at once (MALLOC_MMAP_THRESHOLD_), so that this is what lives at a time, as
torch.cuda.max_memory_allocated tells it of a GPU.

The cases marked "whole" ask what a machine must have: the kernel's peak of the whole process, libraries and free heap
included, after more steps with batches of changing length and the allocator as it is in a sweep. The large models among
them ("no products") are trained with matrix products and attention that write zeros: a CPU without instructions for
bfloat16 would need hours, and the memory is the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from processes import free_port, status

MIB = 2**20
BEST, WORST = 0.85, 1.15
WHOLE_STEPS = 8
"""Optimizer steps after which the peak of a whole process is taken."""


@dataclass(frozen=True)
class Case:
    """A model's shape and how it is trained."""

    method: str = "beamlora"
    stage: int = 0
    hidden: int = 512
    layers: int = 8
    vocabulary: int = 8000
    micro_batch: int = 4
    length: int = 256
    dtype: str = "float32"
    checkpointing: bool = False
    rank: int = 16
    heads: int = 8
    kv_heads: int = 8
    middle: int | None = None
    tied: bool = False
    shipped: bool = False
    whole: bool = False
    products: bool = True

    @property
    def workers(self) -> int:
        return 2 if self.stage else 1

    @property
    def shape(self) -> dict[str, int]:
        return {
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "vocab_size": self.vocabulary,
            "intermediate_size": self.middle or self.hidden * 11 // 4, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "tie_word_embeddings": self.tied,
        }  # fmt: skip

    def __str__(self) -> str:
        notes = {"checkpointing": self.checkpointing, "whole": self.whole, "no products": not self.products}
        model = "shipped" if self.shipped else f"{self.hidden} x {self.layers}, {self.vocabulary} tokens"
        tokens = f"{self.micro_batch} x {self.length}"
        return ", ".join([f"{model}; {tokens}; {self.dtype}", *(note for note, holds in notes.items() if holds)])


SMOLLM2 = Case(
    hidden=576, layers=30, vocabulary=49152, middle=1536, heads=9, kv_heads=3, tied=True, micro_batch=16,
    dtype="bfloat16", whole=True, products=False,
)  # fmt: skip
"""SmolLM2-135M."""
LLAMA = Case(
    hidden=4096, layers=4, vocabulary=32000, middle=11008, heads=32, kv_heads=32, rank=64, dtype="bfloat16",
    whole=True, products=False,
)  # fmt: skip
"""Four layers of LLaMA-7B."""

CASES = [
    Case(),
    Case("lora"),
    Case("lora", vocabulary=32000, layers=4),
    Case("beamlora", rank=128, micro_batch=1, length=128),
    Case("beamlora", checkpointing=True, layers=16),
    Case("dora"),
    Case("adalora"),
    Case("full"),
    Case("beamlora", 1, rank=128),
    Case("beamlora", 2, rank=128, hidden=768, kv_heads=2),
    Case("beamlora", 3, rank=64, hidden=768),
    Case("full", 2, micro_batch=1),
    Case("full", 3, micro_batch=1),
    Case("beamlora", 2, dtype="bfloat16", rank=64),
    Case("full", 2, dtype="bfloat16", micro_batch=1),
    Case(shipped=True, whole=True, micro_batch=16, length=128),
    SMOLLM2,
    LLAMA,
    Case(whole=True),
    Case(whole=True, hidden=768, dtype="bfloat16", products=False),
    Case("full", 2, whole=True, micro_batch=1),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="0,3", help="these cases, by their numbers; default: all")
    parser.add_argument("--steps", type=int, default=WHOLE_STEPS, help=f"of a whole process; default: {WHOLE_STEPS}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        worker(*arguments.worker.split("|"))
        return
    numbers = [int(n) for n in arguments.only.split(",")] if arguments.only else range(len(CASES))
    from importlib.metadata import version

    print(f"{platform.machine()}, " + ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "deepspeed")))
    print(f"{'':>3} {'method':9} ZeRO {'rank':>4}  {'predicted':>9} {'measured':>9} ratio  model; tokens; type")
    found = []
    for number in numbers:
        case = CASES[number]
        with tempfile.TemporaryDirectory() as name:
            predicted, measured = predict_and_measure(case, Path(name), arguments.steps)
        found.append({**asdict(case), "predicted": predicted, "measured": measured, "ratio": measured / predicted})
        print(
            f"{number:3} {case.method:9} {case.stage:4} {case.rank:4}  {predicted / MIB:5.0f} MiB "
            f"{measured / MIB:5.0f} MiB {measured / predicted:5.2f}  {case}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    ratios = [one["ratio"] for one in found]
    print(f"measured / predicted: {min(ratios):.2f} to {max(ratios):.2f}")
    sys.exit(not all(BEST <= ratio <= WORST for ratio in ratios))


def predict_and_measure(case: Case, folder: Path, steps: int) -> tuple[int, int]:
    """Bytes of the worker that takes most."""
    from beamplatform.inference.identity import content_hash
    from beamplatform.models.loading import resolve_path
    from beamplatform.models.shapes import model_shapes
    from beamplatform.sweep.plan.memory_estimate import estimate, target_shapes
    from beamplatform.training.host_memory import allocator_of_workers

    if not case.shipped:
        write_model(case, folder / "model")
    write_records(case, folder / "records.json")
    trial = make_trial(case, folder)
    (folder / "trial.json").write_text(trial.model_dump_json())
    method, path = trial.make_method(64), resolve_path(trial.model.path)
    model = model_shapes(path, content_hash(path))
    expected = estimate(trial, method, model, target_shapes(model, method.values))
    predicted = expected.total if case.whole else expected.total - expected.process
    (folder / "case.json").write_text(json.dumps(asdict(case)))
    port = free_port()
    processes = []
    for rank in range(case.workers):
        with (folder / f"log-{rank}").open("w") as log:
            line = [sys.executable, __file__, "--worker", f"{rank}|{case.workers}|{port}|{steps}|{folder}"]
            # Blocks from here on are given back when they are freed, and no thread keeps a heap of its own.
            tight = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
            environment = os.environ | (allocator_of_workers() if case.whole else tight)
            processes.append(subprocess.Popen(line, stdout=log, stderr=log, env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit((folder / f"log-{codes.index(next(filter(None, codes)))}").read_text())
    return predicted, max(int((folder / f"peak-{rank}").read_text()) for rank in range(case.workers))


def write_model(case: Case, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from beamplatform.models.loading import load_tokenizer

    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype) if case.whole else torch.float32
    torch.set_default_dtype(dtype)
    LlamaForCausalLM(LlamaConfig(**case.shape)).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    load_tokenizer("tiny").save_pretrained(folder)


def write_records(case: Case, file: Path) -> None:
    """Longer than any example may be, so that none is padded; among those of "whole" cases are shorter ones."""
    draw = random.Random(0)
    short = [draw.randrange(case.length // 4) if case.whole and number % 4 else case.length for number in range(132)]
    texts = [" ".join([str(number), *["the answer is that"] * length]) for number, length in enumerate(short)]
    file.write_text(json.dumps([{"instruction": "Go on.", "output": text} for text in texts]))


def make_trial(case: Case, folder: Path) -> Any:
    from beamplatform.config.sections import DataSection, EvaluationSection, ModelSection, TrainingSection
    from beamplatform.config.trial import Trial

    values: dict[str, Any] = {"learning_rate": 1e-5}
    if case.method != "full":
        values["r"] = case.rank
    values |= {"beamlora": {"interval": 1_000, "p_init": 0.95}, "adalora": {"init_r": case.rank}}.get(case.method, {})
    if case.method == "adalora":
        values["r"] = case.rank // 2
    return Trial(
        suite="memory", preset="memory", method=case.method, seed=0, hyperparameters=values,
        training=TrainingSection(
            workers=case.workers, zero_stage=case.stage, max_steps=4_000, micro_batch=case.micro_batch, warmup=0,
            global_batch=case.micro_batch * case.workers * (1 if case.whole else 2), device="cpu", log_every=1,
        ),
        model=ModelSection(
            path="tiny" if case.shipped else str(folder / "model"), dtype=case.dtype,
            gradient_checkpointing=case.checkpointing,
        ),
        data=DataSection(
            train_source=str(folder / "records.json"), max_length=case.length, loss_on="all", validation_records=4
        ),
        evaluation=EvaluationSection(tasks=[]),
    )  # fmt: skip


def worker(rank: str, workers: str, port: str, steps: str, place: str) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    import torch
    from torch import distributed

    from beamplatform.config.trial import Trial
    from beamplatform.training.loop import Worker
    from beamplatform.training.run import start_run

    distributed.init_process_group("gloo")
    folder = Path(place)
    trial = Trial.model_validate_json((folder / "trial.json").read_text())
    case = Case(**json.loads((folder / "case.json").read_text()))
    here = Worker(int(rank), int(workers), torch.device("cpu"))
    library = None if case.products else without_products()
    if case.whole:
        import ray.train.torch  # noqa: F401  as in a sweep's worker

        run = start_run(trial, here)
        for parameter in run.engine.module.parameters():  # products would read the weights, which are a mapped file
            parameter.sum()
        run.train(lambda progress: None, until=int(steps))
        before = 0
    else:
        # The same with the shipped model: what libraries load and keep is not the trial's.
        start_run(trial.model_copy(update={"model": trial.model.model_copy(update={"path": "tiny"})}), here).train(
            lambda progress: None, until=2
        )
        gc.collect()
        before = status("VmRSS")
        run = start_run(trial, here)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        run.train(lambda progress: None, until=3)
    (folder / f"peak-{rank}").write_text(str(status("VmHWM") - before))
    distributed.barrier()
    del library
    os._exit(0)


def without_products() -> Any:
    """Matrix products and attention fill their results with zeros from now on, for as long as the result lives."""
    import torch

    def zeros(like: Any, *shape: int) -> Any:
        return like.new_empty(shape).fill_(0)

    def attention(query: Any, key: Any, value: Any, *__: Any, **___: Any) -> tuple[Any, Any]:
        batch, heads, length, _ = query.shape
        # As torch lays it out: tokens before heads.
        found = zeros(query, batch, length, heads, value.shape[-1]).transpose(1, 2)
        return found, zeros(query.float(), batch, length, heads).transpose(1, 2)

    def attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> tuple[Any, ...]:
        return tuple(torch.empty_like(one).fill_(0) for one in (query, key, value))

    library = torch.library.Library("aten", "IMPL")
    for name, instead in {
        "mm": lambda a, b: zeros(a, a.shape[0], b.shape[1]),
        "bmm": lambda a, b: zeros(a, *a.shape[:2], b.shape[2]),
        "addmm": lambda c, a, b, **_: zeros(a, a.shape[0], b.shape[1]),
        "addmm_": lambda c, a, b, **_: c,
        "mm.out": lambda a, b, *, out: out.fill_(0),
        "addmm.out": lambda c, a, b, *, out, **_: out.fill_(0),
        "_scaled_dot_product_flash_attention_for_cpu": attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    }.items():
        library.impl(name, instead, "CPU")
    return library


if __name__ == "__main__":
    main()
