"""What a training step costs: `python benchmarks/training.py --shape small --ranks 4,16,64`.

A Llama of random weights is trained in several ways, each in a process of its own; ratios are to PEFT's LoRA.

    limit           nothing is trained: the frozen model's forward pass and the gradient to its inputs, which no
                    adapter can leave out
    lora            PEFT's LoRA
    beamlora        BeamLoRA; beamlora-plain is it without its fused layers
    dora, adalora   PEFT's
    full            every weight is trained

What lies around the layers can be added to any of them, as in beamlora+counted+packed:

    counted, chunked   logits of those tokens alone that the loss counts, or of these a part at a time
    packed             examples in one row without padding, by transformers' variable-length attention
    adamw              PyTorch's fused AdamW

Adapters are on all linear layers. On a CPU all ways take a step in turn; on a GPU, which cannot hold them all, one way
follows the other (--again: the first once more at the end, which shows drift). Medians of --rounds steps after two of
warm-up. Memory is what a process of its own takes beyond what it had before the model (CPU), or the peak of PyTorch's
allocator (GPU). It needs torch, transformers and peft; --zero also DeepSpeed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from processes import forking, status

ROOT = Path(__file__).resolve().parent.parent
WAYS = "limit,lora,beamlora,beamlora-plain,dora,adalora,full"
AROUND = (
    "limit,lora,beamlora,beamlora+counted,beamlora+chunked,beamlora+packed,beamlora+adamw,beamlora+counted+packed+adamw"
)
ADDED = ("counted", "chunked", "packed", "adamw")
SHAPES = {
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
    "llama2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama2-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
VOCABULARY = {"small": 4000, "llama2-7b": 32000, "llama2-13b": 32000}
BEAM_INTERVAL = 1000
"""Optimizer steps between two beam steps, by which their share of the time is told."""

LIBRARIES = (
    "peft", "transformers.models.llama.modeling_llama", "beamlora", "beamplatform.training.attention",
    "beamplatform.training.loss",
)  # fmt: skip

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the base; default: float32 on a CPU")
    parser.add_argument(
        "--adapters", choices=("float32", "base"), default="float32",
        help="type of the adapters: PEFT's default, or the base's, as DeepSpeed's bfloat16 mode has them",
    )  # fmt: skip
    parser.add_argument("--ranks", default="16", metavar="4,16,64")
    parser.add_argument("--ways", default=WAYS, metavar="A,B", help=f"default: {WAYS}; 'around': {AROUND}")
    parser.add_argument("--tokens", type=int, default=1024, help="a step, padding counted; default: 1024")
    parser.add_argument("--sequence", type=int, default=256, help="tokens of one example; default: 256")
    parser.add_argument("--varied", action="store_true", help="examples of half that length to all of it, padded")
    parser.add_argument("--answer", type=float, default=1.0, help="part of an example that the loss counts; default: 1")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="within DeepSpeed's engine at this stage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="GPU: the first way a second time at the end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add what was measured to this file")
    arguments = parser.parse_args()
    if arguments.dtype is None:
        arguments.dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    arguments.ways = AROUND if arguments.ways == "around" else arguments.ways
    unknown = {part for way in arguments.ways.split(",") for part in way.split("+")} - {*WAYS.split(","), *ADDED}
    if unknown:
        parser.error(f"--ways: no {', '.join(sorted(unknown))}; allowed: {WAYS}, each with +{', +'.join(ADDED)}")
    machine = f"{device_name(arguments.device)}, " + ", ".join(
        f"{package} {version(package)}" for package in ("torch", "transformers", "peft")
    )
    print(machine)
    print(
        f"{arguments.shape}, {arguments.dtype}, adapters in {arguments.adapters}, {arguments.tokens} tokens a step, "
        f"sequences of {arguments.sequence}{' or less' if arguments.varied else ''}, dropout {arguments.dropout:g}; "
        f"medians of {arguments.rounds}"
    )
    for rank in arguments.ranks.split(","):
        rows = measure(arguments, rank)
        show(rows, rank)
        if arguments.json:
            known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
            setting = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
            known.append({"machine": machine, "setting": setting, "rank": int(rank), "rows": rows})
            arguments.json.write_text(json.dumps(known, indent=1))


def measure(arguments: argparse.Namespace, rank: str) -> dict[str, Row]:
    """Way -> {seconds, bytes, ...} of its median step; of those that ran out of memory, {}."""
    ways = arguments.ways.split(",")
    if arguments.device == "cuda":
        names = [*ways, f"{ways[0]} again"] if arguments.again else ways
        return {name: alone(Worker(arguments, name.removesuffix(" again"), rank), arguments.rounds) for name in names}
    workers = {way: Worker(arguments, way, rank) for way in ways}
    steps: dict[str, list[Row]] = {way: [] for way in ways}
    for one in workers.values():
        one.ask("build")
    for _ in range(arguments.rounds + 2):
        for way, one in workers.items():
            steps[way].append(one.ask("step"))
    found = {way: summary(steps[way], one.end()) for way, one in workers.items()}
    for way in ways:
        # What is freed is given back to the system, and not measured; it takes time.
        exact = alone(Worker(arguments, way, rank, gives_back=True), rounds=1)
        found[way]["bytes"] = exact["bytes"]
    return found


def alone(one: Worker, rounds: int) -> Row:
    one.ask("build")
    steps = [one.ask("step") for _ in range(rounds + 2)]
    return summary(steps, one.end())


def summary(steps: list[Row], end: Row) -> Row:
    if not all(steps) or not end:
        return {}
    return {"seconds": statistics.median(step["seconds"] for step in steps[2:]), "tokens": steps[0]["tokens"], **end}


def show(rows: dict[str, Row], rank: str) -> None:
    base, limit = rows.get("lora"), rows.get("limit")
    wide = max(map(len, rows))
    title = f"r = {rank}"
    print(f"\n{title:{wide}}     s/step   tokens/s      MiB   time to lora   to limit   memory to lora")
    for way, row in rows.items():
        if not row:
            print(f"{way:{wide}}   out of memory")
            continue
        ratios = [
            row["seconds"] / base["seconds"] if base else None,
            row["seconds"] / limit["seconds"] if limit else None,
            row["bytes"] / base["bytes"] if base else None,
        ]
        line = "".join(f"{r:{w}.2f}" if r else " " * w for r, w in zip(ratios, (15, 11, 17), strict=True))
        speed = row["tokens"] / row["seconds"]
        print(f"{way:{wide}} {row['seconds']:10.3f} {speed:10.0f} {row['bytes'] / 2**20:8.0f}{line}")
    for way, row in rows.items():
        if row.get("beam_seconds"):
            share = row["beam_seconds"] / (BEAM_INTERVAL * row["seconds"] + row["beam_seconds"])
            print(f"{way}: a snapshot and a beam step take {row['beam_seconds']:.3f} s together, {share:.4%} of")
            print(f"{' ' * len(way)}  training time with {BEAM_INTERVAL} steps between them")
            break


class Worker:
    """A process that trains in one way. It is forked off one that has imported what is slow, and has done no more."""

    def __init__(self, arguments: argparse.Namespace, way: str, rank: str, *, gives_back: bool = False) -> None:
        context = forking(LIBRARIES, {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"})
        self._name = f"{way}, rank {rank}"
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker, args=(theirs, arguments, way, rank, gives_back), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str) -> Row:
        """Its answer; {} where it ran out of memory."""
        try:
            self._connection.send(what)
            return self._connection.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionError):
            self._process.join()
        if self._process.exitcode == OUT_OF_MEMORY:
            return {}
        sys.exit(f"the worker of {self._name} ended with exit code {self._process.exitcode}")

    def end(self) -> Row:
        """Its last answer; its memory is free then."""
        found = self.ask("end")
        self._process.join()
        return found


OUT_OF_MEMORY = 3
"""Exit code."""
M_MMAP_THRESHOLD = -3
"""The number of the option in glibc's malloc.h."""


def worker(questions: Connection, arguments: argparse.Namespace, way: str, rank: str, gives_back: bool) -> None:
    """Answers `build` when the model is there, `step` with its seconds, and `end` with the most bytes it took and what
    a beam step takes."""
    import torch

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no part of the table
    if gives_back:  # each block of 64 KiB is freed for good, as it is not by glibc's own thresholds
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    try:
        serve(questions, arguments, way, int(rank))
    except torch.OutOfMemoryError:
        os._exit(OUT_OF_MEMORY)


def serve(questions: Connection, arguments: argparse.Namespace, way: str, rank: int) -> None:
    import torch

    from beamplatform.training.attention import attend_within_examples
    from beamplatform.training.loss import summed_loss

    assert questions.recv() == "build"
    way, *added = way.split("+")
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    before = status("VmRSS")
    model = build(arguments, way, rank, device)
    embed = model.get_input_embeddings()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused="adamw" in added or None) if trained else None
    engine = in_engine(model, optimizer, arguments, device) if arguments.zero is not None and optimizer else None
    runner = torch.compile(model) if arguments.compile else model
    head: Any = next((name for name in ("counted", "chunked") if name in added), "all")
    batch, tokens = make_batch(arguments, device, packed="packed" in added)
    if "packed" in added and device.type == "cuda":
        attend_within_examples(model.get_base_model() if hasattr(model, "get_base_model") else model)
    targets = int((batch["labels"][:, 1:] != -100).sum())

    def forward(**inputs: Any) -> Any:
        called = engine if engine is not None else runner
        if way == "full" or optimizer is not None:
            return called(**inputs)
        ids = inputs.pop("input_ids")
        return called(inputs_embeds=embed(ids).detach().requires_grad_(), **inputs)

    forward.module = model  # type: ignore[attr-defined]
    model.train()
    if optimizer is not None and way != "full":
        model.enable_input_require_grads()  # as trainers do, and as the limit has it
    taken = 0
    questions.send({})
    while True:
        if questions.recv() == "end":
            most = torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM") - before
            beam = beam_seconds(model, optimizer, device) if way == "beamlora" and engine is None else None
            questions.send({"bytes": most, "beam_seconds": beam})
            return
        wait(device)
        started = time.perf_counter()
        loss = summed_loss(forward, batch, head) / targets
        if engine is not None:
            engine.backward(loss)
            engine.step()
        else:
            loss.backward()
            if optimizer is not None:
                optimizer.step()
                if way == "adalora":
                    taken += 1
                    model.base_model.update_and_allocate(taken)
                optimizer.zero_grad()
        wait(device)
        seconds = time.perf_counter() - started
        questions.send({"seconds": seconds, "tokens": tokens})


def make_batch(arguments: argparse.Namespace, device: Any, *, packed: bool) -> tuple[dict[str, Any], int]:
    """A batch as the platform makes it, and how many of its tokens are no padding."""
    import torch

    from beamplatform.data.batches import collate, pack
    from beamplatform.data.examples import IGNORED, Example

    longest, count = arguments.sequence, arguments.tokens // arguments.sequence
    examples = []
    for length in torch.linspace(longest // 2 if arguments.varied else longest, longest, count).round().int().tolist():
        ids = torch.randint(VOCABULARY[arguments.shape], (length,)).tolist()
        prompt = int(length * (1 - arguments.answer))
        examples.append(Example(ids, [IGNORED] * prompt + ids[prompt:]))
    batch = pack(examples, device) if packed else collate(examples, 0, device)
    if not packed and not arguments.varied:
        del batch["attention_mask"]
    return batch, sum(len(example.ids) for example in examples)


def build(arguments: argparse.Namespace, way: str, rank: int, device: Any) -> Any:
    import torch
    from peft import AdaLoraConfig, LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[arguments.shape], vocab_size=VOCABULARY[arguments.shape], use_cache=False)
    kind = getattr(torch, arguments.dtype)
    torch.set_default_dtype(kind)
    with device:
        base = LlamaForCausalLM(config).requires_grad_(way == "full")
    torch.set_default_dtype(torch.float32)
    if arguments.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    common: dict[str, Any] = {
        "lora_alpha": 2 * rank, "lora_dropout": arguments.dropout, "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    cast = {"autocast_adapter_dtype": arguments.adapters == "float32"}
    if way in ("limit", "full"):
        return base
    if way.startswith("beamlora"):
        from beamlora import BeamLoraConfig, get_beamlora_model

        settings = BeamLoraConfig(r=rank, fused=way == "beamlora", p_init=0.95, interval=2, **common)
        model = get_beamlora_model(base, settings)
        if not cast["autocast_adapter_dtype"]:
            for name, parameter in model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    parameter.data = parameter.data.to(kind)
        return model
    if way == "adalora":
        steps = {"total_step": 10**6, "tinit": 100, "tfinal": 100}
        return get_peft_model(base, AdaLoraConfig(init_r=rank, target_r=max(1, rank // 2), **steps, **common), **cast)
    return get_peft_model(base, LoraConfig(r=rank, use_dora=way == "dora", **common), **cast)


def in_engine(model: Any, optimizer: Any, arguments: argparse.Namespace, device: Any) -> Any:
    """DeepSpeed's engine with one worker."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(20000 + os.getpid() % 20000)
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would need a compiler
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "bf16": {"enabled": arguments.dtype == "bfloat16"},
        "zero_optimization": {"stage": arguments.zero, "reduce_bucket_size": 50_000_000},
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return deepspeed.initialize(model=model, optimizer=optimizer, model_parameters=trained, config=config)[0]


def beam_seconds(model: Any, optimizer: Any, device: Any) -> float:
    """Of taking a snapshot and of the beam step that uses it, after one more optimizer step: the median of five."""
    import torch

    from beamlora import BeamSearch

    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    search = BeamSearch(model, optimizer, total_steps=40, lr_schedule="constant")
    found = []
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        search.step()
        assert search.step() is not None
        wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    main()
