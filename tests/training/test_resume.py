"""A resumed run is the uninterrupted continuation of the same run, bitwise, at every ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from beamplatform.training.checkpoint_store import CheckpointStore

pytestmark = pytest.mark.faults

# An epoch has 6 steps; the beam step is at 4, its snapshot at 2.
SETTING = {
    "training__max_steps": 8,
    "training__workers": 2,
    "training__micro_batch": 4,  # two micro-batches of each worker make a step
    "shared__target_modules": ["q_proj", "down_proj"],
    "training__log_every": 5,  # so that every checkpoint but one falls between two readings of the loss
    "training__checkpoint_every": 1,
    "training__warmup": 3,
    "training__zero_persistence": 0,
    "data__train_records": 96,
    "data__validation_records": 8,
    "shared__lora_dropout": 0.1,
    "methods__beamlora__interval": 4,
    "methods__adalora__delta_t": 1,
    "methods__relora__cycle": 2,
    "methods__increlora__ranks_per_growth": None,
    "methods__relora__first_warmup": 1,
    "methods__relora__restart_warmup": 1,
}
POINTS = {
    1: "just before a snapshot",
    2: "just after a snapshot",
    3: "just before a beam step",
    4: "at a beam step",
    5: "just after a beam step",
    6: "at the end of an epoch",
}


@pytest.fixture(scope="module")
def resumed(trial, workers, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the workers of `resume_worker.py` saw: stage -> trial -> worker -> {"whole" | point: {step: seen}}."""
    known: dict[int, Any] = {}

    def run(stage: int) -> Any:
        if stage not in known:
            folder = tmp_path_factory.mktemp(f"resume-{stage}")
            methods = ("beamlora", "adalora") if stage == 2 else ("beamlora",)
            trials = {m: trial(m, **SETTING, training__zero_stage=stage).model_dump() for m in methods}
            spec = {"trials": trials, "points": list(POINTS), "interrupt": 5, "folder": str(folder)}
            workers("resume_worker.py", spec, 2, folder)
            known[stage] = {m: [torch.load(folder / f"{m}-{rank}.pt") for rank in range(2)] for m in methods}
        return known[stage]

    return run


CASES = [*((stage, "beamlora") for stage in range(4)), (2, "adalora")]


@pytest.mark.parametrize("point", [*POINTS, "interrupted"], ids=[*POINTS.values(), "in the middle of accumulation"])
@pytest.mark.parametrize(("stage", "method"), CASES)
def test_bitwise(resumed, stage: int, method: str, point: int | str) -> None:
    for worker in resumed(stage)[method]:
        whole, again = worker["whole"], worker[point]
        steps = range(5, 9) if point == "interrupted" else range(point + 1, min(point + 5, 9))
        assert sorted(again) == list(steps)
        for step, seen in again.items():
            expected = whole[step]
            assert seen["batch"] == expected["batch"], f"step {step} saw other tokens"
            assert seen["metrics"] == expected["metrics"], f"step {step}"
            assert seen["values"] == expected["values"], f"step {step}"
            assert seen["tensors"].keys() == expected["tensors"].keys()
            for name, tensor in expected["tensors"].items():
                assert torch.equal(seen["tensors"][name], tensor), f"step {step}: {name}"
            assert torch.equal(seen["generator"], expected["generator"])
            # Python's and NumPy's are anybody's at the start; the run that was cut off had a start of its own.
            assert point == "interrupted" or seen["generators"] == expected["generators"]


def test_the_run_has_what_the_points_are_named_for(resumed) -> None:
    whole = resumed(2)["beamlora"][0]["whole"]
    holds = {step: any(name.startswith("part/") for name in seen["tensors"]) for step, seen in whole.items()}
    assert [step for step in holds if holds[step]] == [2, 3]
    assert [step for step, seen in whole.items() if any("beam/threshold" in row for row in seen["metrics"])] == [4]
    assert all(len(whole[step]["batch"]) == 2 for step in range(1, 8)), (
        "two micro-batches; the last step validates, too"
    )


@pytest.mark.parametrize(
    ("method", "stage", "numbers"),
    [
        ("beamlora", 3, (4, 2, 1)), ("beamlora", 1, (2, 1)), ("relora", 3, (2, 1)), ("increlora", 2, (2, 1)),
    ],
)  # fmt: skip
def test_another_number_of_workers_goes_on(
    method: str, stage: int, numbers: tuple[int, ...], trial, train, tmp_path: Path
) -> None:
    """The snapshot of step 2 is used at step 4, whoever holds it, as are a merge and growths; losses within 1e-5."""
    setting = SETTING | {"shared__lora_dropout": 0.0, "training__log_every": 1, "training__zero_stage": stage}
    setting |= {"training__checkpoint_every": 3}
    first, *others = (trial(method, **setting | {"training__workers": number}) for number in numbers)
    whole = train(first, tmp_path)
    assert CheckpointStore(str(tmp_path)).steps() == [6, 3]
    shutil.rmtree(tmp_path / "step-00000006")
    for step, before, other in zip((3, 6), numbers, others, strict=False):
        found = train(other, tmp_path)
        assert f"step {step} was saved by {before} workers, now there are {other.training.workers}" in found.output
        shutil.rmtree(tmp_path / f"step-{step:08}")  # leaves step 6, written by these
        assert found.series("train/loss") == pytest.approx(whole.series("train/loss"), rel=1e-5)
        for metric in ("beam/operated_ranks", "relora/merges", "increlora/ranks"):
            assert found.series(metric) == whole.series(metric)
        for name, value in whole.final.items():
            torch.testing.assert_close(found.final[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_what_is_in_a_checkpoint_and_a_damaged_one_is_not_used(trial, train, tmp_path: Path) -> None:
    """Its size is that of the adapter and its two moments, with a snapshot twice that: no frozen weights."""
    setting = SETTING | {"training__checkpoint_every": 3, "training__workers": 1, "training__log_every": 1}
    whole = train(trial("beamlora", **setting, training__zero_stage=2), tmp_path)
    adapter = sum(4 * p.numel() for name, p in whole.final.items() if "lora_" in name)
    scores = sum(4 * p.numel() for name, p in whole.final.items() if "lora_beam" in name)
    for step, tensors in ((3, 3 * adapter + 3 * (adapter - scores)), (6, 3 * adapter)):
        folder = tmp_path / f"step-{step:08}"
        held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert tensors <= held < 1.2 * tensors, "headers with the names are all that comes on top"
        assert json.loads((folder / "manifest.json").read_text())["step"] == step

    newest = tmp_path / "step-00000006" / "worker-00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    again = train(trial("beamlora", **setting, training__zero_stage=2), tmp_path)
    assert "step-00000006 is not used: worker-00000.safetensors was altered" in again.output
    assert again.series("train/loss") == whole.series("train/loss")
    for name, value in whole.final.items():
        assert torch.equal(again.final[name], value), name
