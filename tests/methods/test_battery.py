"""One battery for every registered method, at every ZeRO stage on two workers: train 20 steps, save, load and resume,
export, equal logits. A new method is in by being registered."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from beamplatform.inference import Export, check_export
from beamplatform.methods import METHODS, get_method
from beamplatform.models import load_base, resolve_path
from beamplatform.suite import ModelSection

SETTING = {
    "training__max_steps": 20,
    "training__log_every": 1,
    "training__checkpoint_every": 1,
    "training__workers": 2,
    "training__micro_batch": 4,  # two micro-batches of each worker make a step
    "training__warmup": 2,
    "training__zero_persistence": 0,
    "data__train_records": 32,  # seen ten times, so that the loss must fall
    "data__validation_records": 8,
    "shared__target_modules": ["q_proj", "down_proj"],
    "methods__beamlora__interval": 4,
    "methods__adalora__delta_t": 2,
    "methods__relora__cycle": 5,
    "methods__relora__first_warmup": 2,
    "methods__relora__restart_warmup": 2,
    "methods__increlora__interval": 2,
}
POINTS = (4, 5, 10)
"""Steps to resume from. BeamLoRA's beam steps are 4, 8 and 12, ReLoRA's merges 5, 10 and 15; AdaLoRA prunes at
even steps from 4 on, IncreLoRA grows at even steps from 2 on."""
STAGES = range(4)
IDS = torch.arange(3, 99).reshape(4, 24)
"""The tokens that the worker gives the trained model."""


@pytest.fixture(scope="module")
def battery(trial, workers, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the workers saw, once for every stage: stage -> (folder, {method: [of each worker]})."""
    known: dict[int, Any] = {}

    def run(stage: int) -> Any:
        if stage not in known:
            folder = tmp_path_factory.mktemp(f"battery-{stage}")
            trials = {method: trial(method, **SETTING, training__zero_stage=stage).model_dump() for method in METHODS}
            spec = {"trials": trials, "points": list(POINTS), "interrupt": None, "folder": str(folder)}
            workers("resume_worker.py", spec, 2, folder)
            seen = {method: [torch.load(folder / f"{method}-{rank}.pt") for rank in range(2)] for method in METHODS}
            known[stage] = (folder, seen)
        return known[stage]

    return run


def losses(seen: Any) -> list[float]:
    return [row["train/loss"] for step in seen["whole"].values() for row in step["metrics"] if "train/loss" in row]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_and_is_that_of_unsharded_training(battery, stage: int, method: str) -> None:
    found = losses(battery(stage)[1][method][0])
    assert len(found) == 20 and sum(found[-5:]) < sum(found[:5])
    assert found == pytest.approx(losses(battery(0)[1][method][0]), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_it_resumes_to_the_bit(battery, stage: int, method: str) -> None:
    for worker in battery(stage)[1][method]:
        for point in POINTS:
            assert sorted(worker[point]) == list(range(point + 1, point + 5))
            for step, seen in worker[point].items():
                expected = worker["whole"][step]
                assert seen["batch"] == expected["batch"] and seen["metrics"] == expected["metrics"], step
                assert json.loads(seen["values"]) == json.loads(expected["values"]), step
                assert seen["tensors"].keys() == expected["tensors"].keys()
                for name, tensor in expected["tensors"].items():
                    assert torch.equal(seen["tensors"][name], tensor), f"step {step}: {name}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_live_and_master_weights_agree_at_the_end(battery, stage: int, method: str) -> None:
    for worker in battery(stage)[1][method]:
        masters = worker["whole"][20]["tensors"]
        for name, live in worker["final"]["live"].items():
            assert torch.equal(live, masters[f"{name}/value"]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_export_is_the_trained_model(battery, stage: int, method: str) -> None:
    folder, seen = battery(stage)
    kind = get_method(method).export_kind
    path = folder / method / "export"
    check_export(resolve_path("tiny"), Export(kind, str(path)))
    assert not list(path.glob("*.bin")) and list(path.glob("*.safetensors"))
    logits = exported_logits(kind, str(path))
    # Against the largest logit: relative to logits near zero no two orders of summation agree.
    assert (logits - seen[method][0]["final"]["logits"]).abs().max() / logits.abs().max() < 1e-5
    base = exported_logits("base", resolve_path("tiny"))
    assert (logits - base).abs().max() > 1e-2, "the export must be in use: it differs from the base model"


def exported_logits(kind: str, folder: str) -> torch.Tensor:
    """Loaded as a stranger would, with PEFT or transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if kind == "adapter":
        model = PeftModel.from_pretrained(load_base(ModelSection(path="tiny", dtype="float32"), on_gpu=False), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(IDS).logits
