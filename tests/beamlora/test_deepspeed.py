"""A beam step under DeepSpeed ZeRO 0 to 3 with one to three real workers is the beam step of one torch process."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from forked import Program
from serving import free_port

from beamlora import BeamSearch
from beamlora.optimizer_access import TorchAccess
from beamlora.state import ParameterState

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

CASES = {
    1: [
        "0-float32-1-sharded",
        "0-bfloat16-1-sharded",
        "1-float32-4-sharded",
        "1-bfloat16-1-sharded",
        "2-bfloat16-1-sharded",
        "2-float32-1-offload",
        "3-float32-1-sharded",
        "3-bfloat16-4-sharded",
    ],
    2: [
        "0-float32-4-sharded",
        "0-bfloat16-1-sharded",
        "1-float32-1-sharded",
        "1-bfloat16-4-sharded",
        "1-float32-1-offload",
        "1-bfloat16-1-offload",
        "2-float32-1-offload",
        "2-float32-4-sharded",
        "2-bfloat16-1-sharded",
        "2-bfloat16-4-offload",
        "3-float32-1-sharded",
        "3-float32-4-persistent",
        "3-bfloat16-1-persistent",
        "3-float32-4-offload",
        "3-bfloat16-4-offload",
    ],
    # Three do not divide the scores' 5 values, A's 60 and 45, nor B's 45 and 35 evenly.
    3: [
        "0-float32-1-sharded",
        "0-bfloat16-4-sharded",
        "1-float32-1-sharded",
        "1-bfloat16-1-sharded",
        "2-float32-4-sharded",
        "2-bfloat16-1-sharded",
        "3-float32-4-sharded",
        "3-bfloat16-1-sharded",
        "3-float32-1-offload",
    ],
}
ALL = [f"{world}-{case}" for world, cases in CASES.items() for case in cases]
FLOAT32 = [case for case in ALL if "float32" in case]
"""Gradients in bfloat16 are rounded for each micro-batch, so that they depend on the division into such."""
SCRIPT = Path(__file__).with_name("zero_worker.py")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zero_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_script()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, list[dict]]:
    """What the workers saw, by case."""
    return {
        f"{world}-{case}": found
        for world, cases in CASES.items()
        for case, found in run_workers(world, cases, tmp_path_factory.mktemp("zero"), root).items()
    }


def run_workers(world: int, cases: list[str], folder: Path, root: Path) -> dict[str, list[dict]]:
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    programs: list[Program] = []
    try:
        for rank in range(world):
            log = folder / f"{rank}.log"
            line = (rank, world, port, folder, *cases)
            options = {"stdout": log, "stderr": log, "environment": environment, "folder": folder}
            programs.append(Program(SCRIPT, line, **options))
        for program in programs:
            assert program.wait(timeout=900) == 0, program.stdout.read_text()[-4000:]
    finally:
        for program in programs:
            program.kill()
    return {case: [torch.load(folder / f"{case}-{rank}.pt") for rank in range(world)] for case in cases}


def equal(left: dict[str, dict], right: dict[str, dict]) -> bool:
    assert left.keys() == right.keys()
    return all(
        left[n].keys() == right[n].keys() and all(torch.equal(left[n][k], right[n][k]) for k in left[n]) for n in left
    )


@pytest.fixture(params=ALL)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def parts_of(case: str) -> tuple[int, int, torch.dtype, int, str]:
    world, stage, dtype, accumulation, option = case.split("-")
    return int(world), int(stage), getattr(torch, dtype), int(accumulation), option


def test_workers_agree(seen, case: str) -> None:
    first, *others = seen[case]
    for other in others:
        assert first["operated"] == other["operated"] and first["history"] == other["history"]
        for moment in ("initial", "snapshot", "before", "after", "end", "live"):
            assert equal(first[moment], other[moment]) if moment != "live" else same(first[moment], other[moment])
        assert same(first["gradient"], other["gradient"])


def test_disagreeing_workers_are_stopped(tmp_path: Path, root: Path) -> None:
    """Two workers with different seeds would pair different ranks: both are told, and nothing is changed."""
    found = run_workers(2, ["2-float32-1-disagree", "3-float32-1-disagree"], tmp_path, root)
    for results in found.values():
        for ours in results:
            assert "beam step at step 4: the workers do not agree (workers 1 differ from worker 0)" in ours["error"]
            assert equal(ours["before"], ours["after"])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_every_stage_keeps_its_own_optimizer(seen, case: str) -> None:
    _, stage, dtype, _, _ = parts_of(case)
    unsharded = "AdamW" if dtype == torch.float32 else "FP16_UnfusedOptimizer"
    expected = (unsharded, "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")[stage]
    assert seen[case][0]["optimizer"] == expected


@pytest.mark.parametrize("case", FLOAT32)
def test_whole_run_is_that_of_one_process(seen, case: str) -> None:
    """The ranks chosen and paired, weights and moments around them within 1e-5."""
    ours = seen[case][0]
    model = worker.build()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    search = BeamSearch(model, optimizer, total_steps=18, seed=3)
    history = []
    for step in range(1, worker.LAST + 1):
        x, y = worker.batch(step)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        report = search.step()
        if report is not None:
            history.append(report.operated)
        if step == worker.BEAM_STEP:
            close(ours["after"], worker.read(TorchAccess(optimizer), model))
        if step == worker.STEPS:
            close(ours["end"], worker.read(TorchAccess(optimizer), model))
    assert len(history) > 1 and history == ours["history"], "the same ranks and pairs at every beam step"


def close(found: dict[str, dict], expected: dict[str, dict]) -> None:
    """Within 1e-5 of the largest value of each tensor."""
    for name, state in expected.items():
        for entry, value in state.items():
            off = (found[name][entry] - value).abs().max()
            assert off <= 1e-5 * value.abs().max(), f"{name} {entry}: off by {off}"


def test_snapshot_is_sharded(seen, case: str) -> None:
    """Each worker keeps what it holds of the factors; together it is the whole snapshot, nothing twice."""
    world, stage, _, _, _ = parts_of(case)
    kinds = {"a": "lora_A", "b": "lora_B"}
    for key, tensor in whole_snapshot(seen[case][0]).items():
        pieces = []
        for ours in seen[case]:
            start, part = ours["snapshot part"].get(key, (0, torch.empty(0)))
            pieces += [(start, part)] if part.numel() else []
        held = sum(part.numel() for _, part in pieces)
        assert held == tensor.numel() * (1 if stage else world), kinds
        for start, part in pieces:
            assert torch.equal(part, tensor[start : start + part.numel()])
    sizes = [sum(part.numel() for _, part in ours["snapshot part"].values()) for ours in seen[case]]
    assert stage == 0 or max(sizes) < 1.6 * sum(sizes) / world


def whole_snapshot(ours: dict) -> dict[str, torch.Tensor]:
    names = {"lora_A": "a", "lora_B": "b"}
    found = {}
    for name, state in ours["snapshot"].items():
        layer, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        kind = names.get("lora_" + rest.split(".")[0])
        if kind:
            found |= {f"{layer}/{kind}/{entry}": tensor.flatten() for entry, tensor in state.items()}
    return found


def test_only_operated_ranks_are_moved(seen, case: str) -> None:
    world, stage, _, _, _ = parts_of(case)
    ours = seen[case][0]
    sizes = {"0": 12 + 9, "2": 9 + 7}
    moved = 4 * 10 + sum(3 * 4 * len(pairs) * sizes[layer] for layer, pairs in ours["operated"].items())
    assert ours["bytes moved"] == (moved if stage and world > 1 else 0)
    # What really was handed to collectives: that, and a hash of the choice.
    assert ours["sent"].get("all_reduce", 0) == ours["bytes moved"]
    assert sum(ours["sent"].values()) - ours["bytes moved"] <= 16 * world


def test_there_are_no_moments_before_the_first_step(seen, case: str) -> None:
    for state in seen[case][0]["initial"].values():
        if seen[case][0]["optimizer"] == "FP16_UnfusedOptimizer":  # DeepSpeed takes an empty step when it is made
            assert not state["exp_avg"].any() and not state["exp_avg_sq"].any()
        else:
            assert state.keys() == {"value"}


def test_beam_step_is_bitwise_that_of_one_process(seen, case: str) -> None:
    ours = seen[case][0]
    model, optimizer, search = single_process(ours)
    access = TorchAccess(optimizer)
    assert search.step() is None
    write(access, model, ours["snapshot"])
    assert search.step() is None  # step 2 takes the snapshot
    assert search.step() is None
    write(access, model, ours["before"])
    report = search.step()
    assert report.operated_ranks > 1 and report.operated == ours["operated"]
    assert equal(worker.read(access, model), ours["after"])
    assert not equal(ours["before"], ours["after"])


def test_next_forward_uses_the_new_weights(seen, case: str) -> None:
    ours = seen[case][0]
    dtype = parts_of(case)[2]
    for name, value in ours["live"].items():
        assert torch.equal(value, ours["after"][name]["value"].to(dtype))
    model, optimizer, _ = single_process(ours)
    write(TorchAccess(optimizer), model, ours["after"])
    expected = model.to(dtype)(worker.batch(0)[0].to(dtype))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours["output after"], expected, rtol=tolerance, atol=tolerance)
    assert (ours["output after"] - ours["output before"]).abs().max() > 3 * tolerance


def test_next_optimizer_step_starts_from_the_new_weights_and_moments(seen, case: str) -> None:
    ours = seen[case][0]
    model, optimizer, _ = single_process(ours)
    write(TorchAccess(optimizer), model, ours["after"])
    parameters = dict(model.named_parameters())
    for state in optimizer.state.values():
        # The beam step leaves Adam's count alone; DeepSpeed's unsharded optimizer has counted an empty step before.
        state["step"].fill_(worker.BEAM_STEP + (ours["optimizer"] == "FP16_UnfusedOptimizer"))
    for name, gradient in ours["gradient"].items():
        parameters[name].grad = gradient
    optimizer.step()
    for name, state in worker.read(TorchAccess(optimizer), model).items():
        for entry, value in state.items():
            torch.testing.assert_close(ours["end"][name][entry], value, rtol=1e-5, atol=1e-7, msg=f"{name} {entry}")


@pytest.mark.parametrize("case", FLOAT32)
def test_gradient_is_the_mean_over_workers(seen, case: str) -> None:
    ours = seen[case][0]
    model, optimizer, _ = single_process(ours)
    write(TorchAccess(optimizer), model, ours["after"])
    optimizer.zero_grad()
    x, y = worker.batch(worker.STEPS)
    (model(x) - y).square().mean().backward()
    access = TorchAccess(optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(ours["gradient"][name], access.gradient(parameter), rtol=1e-4, atol=1e-6)


def test_export_gathers_the_whole_adapter(seen, case: str) -> None:
    ours = seen[case][0]
    shapes = {name.removeprefix("base_model.model."): list(t.shape) for name, t in ours["export"].items()}
    assert shapes == {
        "0.lora_A.weight": [5, 12],
        "0.lora_B.weight": [9, 5],
        "2.lora_A.weight": [5, 9],
        "2.lora_B.weight": [7, 5],
    }
    weights = 5 * torch.softmax(ours["live"]["base_model.model.0.lora_beam.default.weight"].float() / 0.05, 0)
    expected = weights[:, None] * ours["live"]["base_model.model.0.lora_A.default.weight"]
    exported = ours["export"]["base_model.model.0.lora_A.weight"]
    torch.testing.assert_close(exported, expected.to(exported.dtype))


def single_process(ours: dict) -> tuple[torch.nn.Module, torch.optim.Optimizer, BeamSearch]:
    """The worker's model and search in this process, with AdamW's state allocated."""
    model = worker.build()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    search = BeamSearch(model, optimizer, total_steps=18, seed=3)
    x, y = worker.batch(1)
    (model(x) - y).square().mean().backward()
    optimizer.step()
    return model, optimizer, search


def write(access: TorchAccess, model: torch.nn.Module, states: dict[str, dict]) -> None:
    parameters = dict(model.named_parameters())
    for name, state in states.items():
        moments = {entry: tensor for entry, tensor in state.items() if entry != "value"}
        access.write(parameters[name], ParameterState(state["value"], moments))
