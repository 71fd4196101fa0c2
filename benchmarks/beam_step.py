"""What a beam step costs: `python benchmarks/beam_step.py --workers 2 --stage 2`.

An adapter shaped like LLaMA2-7B's (7 linear layers a block, r = 64) with random weights is trained for a few steps by
DeepSpeed on real workers; the loss is the adapters' own output, so that nothing but the adapter is in memory. Printed
as ratios within this run: snapshot bytes of a worker to the adapter's and its moments', bytes moved in a beam step to
the same, and the beam step's time to an optimizer step's. All 32 blocks fit 24 GiB with two workers; --layers scales it
down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INTERMEDIATE = 4096, 11008
BLOCK = [*[(HIDDEN, HIDDEN)] * 4, *[(HIDDEN, INTERMEDIATE)] * 2, (INTERMEDIATE, HIDDEN)]
"""(d_in, d_out) of q, k, v, o, gate, up and down of LLaMA2-7B."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32, help="transformer blocks of seven linear layers (7B: 32)")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stage", type=int, default=2, choices=(0, 1, 2, 3), help="ZeRO stage")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--snapshot-device", default="cpu", choices=("cpu", "parameter"))
    parser.add_argument("--beam-steps", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        worker(arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:]]
        processes = []
        for rank in range(arguments.workers):
            with (Path(folder) / f"log-{rank}").open("w") as log:
                line = [*command, "--worker", f"{rank}:{port}:{folder}"]
                processes.append(subprocess.Popen(line, stdout=log, stderr=log))
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit((Path(folder) / f"log-{codes.index(next(filter(None, codes)))}").read_text())
        show(arguments, [json.loads((Path(folder) / f"result-{r}.json").read_text()) for r in range(arguments.workers)])


def show(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    first = results[0]
    adapter, state = first["adapter"], 3 * first["adapter"]
    gib = 2**30
    print(
        f"{7 * arguments.layers} layers of LLaMA2-7B, r = {arguments.rank}, {adapter / gib:.3f} GiB in float32;",
        end=" ",
    )
    print(f"{arguments.workers} workers, ZeRO {arguments.stage}, {arguments.device}, {first['versions']}")
    largest = max(result["snapshot"] for result in results)
    print(f"snapshot of a worker         {largest / gib:8.3f} GiB   {largest / state:6.3f} of adapter and moments")
    ranks = statistics.median(first["ranks"])
    share = ranks / (7 * arguments.layers * arguments.rank)
    moved = statistics.median(first["moved"])
    print(f"moved in a beam step         {moved / gib:8.3f} GiB   {moved / state:6.3f} of adapter and moments", end="")
    print(f" ({ranks:.0f} ranks, {share:.3f} of all)")
    step = statistics.median(first["optimizer_seconds"])
    for name in ("snapshot", "beam"):
        seconds = statistics.median(first[f"{name}_seconds"])
        label = {"snapshot": "taking a snapshot", "beam": "a beam step"}[name]
        print(f"{label:28} {seconds:8.3f} s     {seconds / step:6.2f} of an optimizer step ({step:.3f} s)")


def worker(arguments: argparse.Namespace) -> None:
    rank, port, folder = arguments.worker.split(":")
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(arguments.workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if arguments.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"

    import deepspeed
    import torch

    from beamlora import BeamLoraConfig, BeamSearch, get_beamlora_model

    device = torch.device("cuda", int(rank)) if arguments.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // arguments.workers))

    class Base(torch.nn.Module):
        """The frozen layers' shapes; one storage of zeros behind all of them, so that they take no memory."""

        def __init__(self) -> None:
            super().__init__()
            zero = torch.zeros(1, device=device)
            self.layers = torch.nn.ModuleList()
            for d_in, d_out in BLOCK * arguments.layers:
                layer = torch.nn.Linear(d_in, d_out, bias=False, device="meta")
                layer.weight = torch.nn.Parameter(zero.expand(d_out, d_in), requires_grad=False)
                self.layers.append(layer)

    torch.manual_seed(0)
    interval, total = 2, 2 * (arguments.beam_steps + 2)
    config = BeamLoraConfig(
        r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=r"layers\.\d+", p_init=0.95, interval=interval,
        threshold_schedule="constant", operate_until=1.0, snapshot_device=arguments.snapshot_device,
    )  # fmt: skip
    model = get_beamlora_model(Base(), config)
    for module in model.modules():
        if hasattr(module, "base_layer"):
            del module.base_layer.weight  # only its shape was needed; DeepSpeed would send it to all workers
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = sum(4 * parameter.numel() for parameter in trained)
    optimizer = torch.optim.AdamW(trained, lr=3e-4)
    zero = {"stage": arguments.stage, "stage3_param_persistence_threshold": 0}
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, model_parameters=trained,
        config={
            "train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )  # fmt: skip
    search = BeamSearch(engine, engine.optimizer, total_steps=total, seed=0)
    found: dict[str, Any] = {"adapter": adapter, "snapshot": 0}
    found |= {key: [] for key in ("optimizer_seconds", "snapshot_seconds", "beam_seconds", "moved", "ranks")}

    def seconds(call: Any) -> tuple[float, Any]:
        if device.type == "cuda":
            torch.cuda.synchronize()
        torch.distributed.barrier()
        started = time.perf_counter()
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, result

    layers = [module for module in engine.module.modules() if hasattr(module, "lora_beam")]
    inputs = {size: torch.randn(2, size, device=device) for size in (HIDDEN, INTERMEDIATE)}

    def forward() -> Any:
        total_loss = torch.zeros((), device=device)
        for layer in layers:
            hidden = layer.lora_A["default"](inputs[layer.in_features]) * layer.scores("default")()
            total_loss = total_loss + layer.lora_B["default"](hidden).sub(1).square().mean()
        return total_loss

    engine.module.forward = forward
    for _ in range(total):
        engine.backward(engine())
        found["optimizer_seconds"].append(seconds(engine.step)[0])
        taken, report = seconds(search.step)
        if report is not None:
            found["beam_seconds"].append(taken)
            found["moved"].append(report.bytes_moved)
            found["ranks"].append(report.operated_ranks)
        elif parts := search.state_dict()["snapshot"]:
            found["snapshot_seconds"].append(taken)
            found["snapshot"] = sum(tensor.numel() * tensor.element_size() for _, tensor in parts.values())
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    )
    found["versions"] = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, {where}"
    (Path(folder) / f"result-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
