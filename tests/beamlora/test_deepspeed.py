"""A beam step under DeepSpeed ZeRO 1, 2 and 3 with two real workers is the beam step of one torch process."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from beamlora import BeamSearch
from beamlora.optimizer_access import TorchAccess, optimizer_access
from beamlora.state import ParameterState

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

CASES = ["1-float32-0", "2-bfloat16-0", "3-float32-0", "3-bfloat16-100000"]
SCRIPT = Path(__file__).with_name("zero_worker.py")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zero_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_script()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, list[dict]]:
    """What both workers saw, by case."""
    folder = tmp_path_factory.mktemp("zero")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in range(2):
            with (folder / f"{rank}.log").open("w") as log:
                command = [sys.executable, str(SCRIPT), str(rank), "2", str(port), str(folder), *CASES]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder))
        for rank, process in enumerate(processes):
            code = process.wait(timeout=300)
            assert code == 0, (folder / f"{rank}.log").read_text()[-4000:]
    finally:
        for process in processes:
            process.kill()
    return {case: [torch.load(folder / f"{case}-{rank}.pt") for rank in range(2)] for case in CASES}


def equal(left: dict[str, dict], right: dict[str, dict]) -> bool:
    assert left.keys() == right.keys()
    return all(
        left[n].keys() == right[n].keys() and all(torch.equal(left[n][k], right[n][k]) for k in left[n]) for n in left
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_workers_agree(seen, case: str) -> None:
    first, second = seen[case]
    assert first["operated"] == second["operated"]
    for moment in ("initial", "snapshot", "before", "after", "end"):
        assert equal(first[moment], second[moment])
    for name in first["gradient"]:
        assert torch.equal(first["gradient"][name], second["gradient"][name])


def test_every_stage_keeps_its_own_optimizer(seen, case: str) -> None:
    expected = "DeepSpeedZeroOptimizer_Stage3" if case.startswith("3") else "DeepSpeedZeroOptimizer"
    assert seen[case][0]["optimizer"] == expected


def test_there_are_no_moments_before_the_first_step(seen, case: str) -> None:
    assert all(state.keys() == {"value"} for state in seen[case][0]["initial"].values())


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
    dtype = getattr(torch, case.split("-")[1])
    for name, value in ours["live"].items():
        assert torch.equal(value, ours["after"][name]["value"].to(dtype))
    model, optimizer, _ = single_process(ours)
    write(TorchAccess(optimizer), model, ours["after"])
    expected = model.to(dtype)(worker.batch(0, 0)[0].to(dtype))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours["output after"], expected, rtol=tolerance, atol=tolerance)
    assert (ours["output after"] - ours["output before"]).abs().max() > 3 * tolerance


def test_next_optimizer_step_starts_from_the_new_weights_and_moments(seen, case: str) -> None:
    ours = seen[case][0]
    model, optimizer, _ = single_process(ours)
    write(TorchAccess(optimizer), model, ours["after"])
    parameters = dict(model.named_parameters())
    for state in optimizer.state.values():
        state["step"].fill_(worker.BEAM_STEP)  # the beam step leaves Adam's count alone
    for name, gradient in ours["gradient"].items():
        parameters[name].grad = gradient
    optimizer.step()
    for name, state in worker.read(TorchAccess(optimizer), model).items():
        for entry, value in state.items():
            torch.testing.assert_close(ours["end"][name][entry], value, rtol=1e-5, atol=1e-7, msg=f"{name} {entry}")


def test_gradient_is_the_mean_over_workers(seen) -> None:
    ours = seen["1-float32-0"][0]
    model, optimizer, _ = single_process(ours)
    write(TorchAccess(optimizer), model, ours["after"])
    optimizer.zero_grad()
    for rank in range(2):
        x, y = worker.batch(worker.STEPS, rank)
        ((model(x) - y).square().mean() / 2).backward()
    access = optimizer_access(optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for case in ("1-float32-0", "3-float32-0"):
                torch.testing.assert_close(
                    seen[case][0]["gradient"][name], access.gradient(parameter), rtol=1e-4, atol=1e-6
                )


def test_export_gathers_the_whole_adapter(seen, case: str) -> None:
    ours = seen[case][0]
    shapes = {name.removeprefix("base_model.model."): list(t.shape) for name, t in ours["export"].items()}
    assert shapes == {
        "0.lora_A.weight": [5, 12],
        "0.lora_B.weight": [9, 5],
        "2.lora_A.weight": [5, 9],
        "2.lora_B.weight": [7, 5],
    }
    weights = 5 * torch.softmax(ours["live"]["base_model.model.0.lora_score.default.weight"].float() / 0.05, 0)
    expected = weights[:, None] * ours["live"]["base_model.model.0.lora_A.default.weight"]
    exported = ours["export"]["base_model.model.0.lora_A.weight"]
    torch.testing.assert_close(exported, expected.to(exported.dtype))


def single_process(ours: dict) -> tuple[torch.nn.Module, torch.optim.Optimizer, BeamSearch]:
    """The worker's model and search in this process, with AdamW's state allocated."""
    model = worker.build()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    search = BeamSearch(model, optimizer, total_steps=18, seed=3)
    x, y = worker.batch(1, 0)
    (model(x) - y).square().mean().backward()
    optimizer.step()
    return model, optimizer, search


def write(access: TorchAccess, model: torch.nn.Module, states: dict[str, dict]) -> None:
    parameters = dict(model.named_parameters())
    for name, state in states.items():
        moments = {entry: tensor for entry, tensor in state.items() if entry != "value"}
        access.write(parameters[name], ParameterState(state["value"], moments))
