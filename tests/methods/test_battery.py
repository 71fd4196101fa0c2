"""One battery for every registered method, at every ZeRO stage on two workers: train 20 steps, save, load and resume,
export, equal logits. A new method is in by being registered.

`make test` has one stage of ZeRO, resumed once; `make test-slow` all four, resumed from every point.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import complete
from engines import needs_vllm, vllm_answers

from beamplatform.baselines.relora.schedule import RestartSchedule
from beamplatform.data import splits
from beamplatform.inference import Export, check_export, create_engine
from beamplatform.methods import METHODS, get_method
from beamplatform.models.loading import load_base, load_tokenizer
from beamplatform.tasks import TASKS

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
    "shared__lora_dropout": 0.05,
    "methods__beamlora__interval": 4,
    "methods__adalora__delta_t": 2,
    "methods__relora__cycle": 5,
    "methods__relora__first_warmup": 2,
    "methods__relora__restart_warmup": 2,
    "methods__increlora__interval": 2,
    "methods__increlora__ranks_per_growth": None,
}
POINTS = (4, 5, 10)
"""Steps to resume from. BeamLoRA's beam steps are 4, 8 and 12, ReLoRA's merges 5, 10 and 15; AdaLoRA prunes at
even steps from 4 on, IncreLoRA grows at even steps from 2 on."""
INTERRUPTED = 7
"""The step between whose micro-batches a run is cut off, at ZeRO-2 (test_resume.py: at every stage)."""

RUNS = [
    pytest.param(2, (5,), id="2", marks=pytest.mark.xdist_group("battery")),
    *(
        pytest.param(stage, POINTS, id=f"{stage}-whole", marks=[pytest.mark.slow, pytest.mark.xdist_group("battery")])
        for stage in range(4)
    ),
]
"""ZeRO stage and the steps to resume from: one of each in `make test`, all in `make test-slow`."""
LAYERS = 2
IDS = torch.arange(3, 99).reshape(4, 24)
"""The tokens that the worker gives the trained model."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped model's first layers: what a method does to a third one is what it does to two."""
    folder = str(tmp_path_factory.mktemp("base"))
    model: Any = load_base("tiny", torch.float32)
    del model.model.layers[LAYERS:]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def battery(trial, workers, base: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """What the workers saw, once for every stage: stage -> (folder, {method: [of each worker]}).

    Where the slow runs of every stage are selected, too, they serve the tests of `make test`, whose points are theirs.
    """
    known: dict[Any, Any] = {}
    whole = any(item.path == request.path and item.get_closest_marker("slow") for item in request.session.items)

    def run(stage: int, points: tuple[int, ...], **changes: Any) -> Any:
        if whole and not changes:
            points = POINTS
        key = (stage, points, *sorted(changes.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp(f"battery-{stage}")
            setting = SETTING | {"training__zero_stage": stage, "model__path": base} | changes
            trials = {method: trial(method, **setting).model_dump() for method in METHODS}
            interrupt = INTERRUPTED if points == POINTS and stage == 2 else None
            spec = {"trials": trials, "points": list(points), "interrupt": interrupt, "folder": str(folder)}
            workers("resume_worker.py", spec, 2, folder)
            seen = {method: [torch.load(folder / f"{method}-{rank}.pt") for rank in range(2)] for method in METHODS}
            known[key] = (folder, seen)
        return known[key]

    return run


def unsharded(battery, points: tuple[int, ...]) -> Any:
    """What the runs without sharding saw: those that are resumed, too, where these are there."""
    return battery(0, points if points == POINTS else ())[1]


def losses(seen: Any) -> list[float]:
    return [row["train/loss"] for step in seen["whole"].values() for row in step["metrics"] if "train/loss" in row]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stage", "points"), RUNS)
def test_the_loss_falls_and_is_that_of_unsharded_training(battery, stage: int, points: Any, method: str) -> None:
    found = losses(battery(stage, points)[1][method][0])
    assert len(found) == 20 and sum(found[-5:]) < sum(found[:5])
    assert found == pytest.approx(losses(unsharded(battery, points)[method][0]), rel=1e-5)


@pytest.mark.parametrize(("stage", "points"), RUNS)
def test_each_method_did_what_it_is_named_for(battery, base: str, stage: int, points: Any) -> None:
    """What it says at its own steps, and the numbers of parameters that a comparison is judged by."""
    _, seen = battery(stage, points)

    def series(method: str, metric: str) -> list[tuple[int, float]]:
        steps = seen[method][0]["whole"].items()
        return [(step, row[metric]) for step, at in steps for row in at["metrics"] if metric in row]

    modules = sum(1 for name in seen["lora"][0]["final"]["live"] if "lora_A" in name)
    assert [step for step, ranks in series("beamlora", "beam/operated_ranks") if ranks] == [4, 8, 12]
    assert series("relora", "relora/merges") == [(5, 1), (10, 2), (15, 3)]
    curve = RestartSchedule(20, (5, 10, 15), warmup=2, restart_warmup=2)
    rates = [rate / 4e-3 for _, rate in series("relora", "train/learning_rate")]
    assert rates == pytest.approx([curve.factor(step) for step in range(20)])
    grown = series("increlora", "increlora/ranks")
    assert grown[-1][1] == 8 * modules and all(step % 2 == 0 for step, _ in grown) and len(grown) > 3
    assert any(name.endswith("/age") for name in seen["increlora"][0]["whole"][20]["tensors"])
    assert series("adalora", "adalora/budget")[-1][1] == 8 * modules

    final = {method: series(method, "train/final_parameters")[-1][1] for method in METHODS}
    live = {method: seen[method][0]["final"]["live"] for method in METHODS}
    assert final["lora"] == sum(value.numel() for value in live["lora"].values())
    assert final["full"] == sum(p.numel() for p in load(base).parameters())
    kept = 0
    for name, e in live["adalora"].items():
        if "lora_E" in name:
            a, b = (live["adalora"][name.replace("lora_E", kind)] for kind in ("lora_A", "lora_B"))
            kept += int((e != 0).sum()) * (a.shape[1] + b.shape[0] + 1)
    assert final["adalora"] == kept
    ranks = json.loads(seen["increlora"][0]["whole"][20]["values"])["ranks"]
    grown_to = 0
    for name, n in ranks.items():
        a, b = (live["increlora"][f"base_model.model.{name}.lora_{kind}.default.weight"] for kind in "AB")
        grown_to += n * (a.shape[1] + b.shape[0] + 1)
    assert final["increlora"] == grown_to
    assert max(most for _, most in series("increlora", "train/trainable_parameters")) > final["increlora"], "a reserve"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stage", "points"), RUNS)
def test_it_resumes_to_the_bit(battery, stage: int, points: Any, method: str) -> None:
    for worker in battery(stage, points)[1][method]:
        for point in (*points, "interrupted") if (stage, points) == (2, POINTS) else points:
            steps = range(INTERRUPTED, 21) if point == "interrupted" else range(point + 1, point + 5)
            assert sorted(worker[point]) == list(steps)
            for step, seen in worker[point].items():
                expected = worker["whole"][step]
                assert torch.equal(seen["generator"], expected["generator"]) and expected["generators"], step
                # Python's and NumPy's are anybody's at the start; the one that was cut off had a start of its own.
                assert point == "interrupted" or seen["generators"] == expected["generators"], step
                assert seen["batch"] == expected["batch"] and seen["metrics"] == expected["metrics"], step
                assert json.loads(seen["values"]) == json.loads(expected["values"]), step
                assert seen["tensors"].keys() == expected["tensors"].keys()
                for name, tensor in expected["tensors"].items():
                    assert torch.equal(seen["tensors"][name], tensor), f"step {step}: {name}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stage", "points"), RUNS)
def test_live_and_master_weights_agree_at_the_end(battery, stage: int, points: Any, method: str) -> None:
    for worker in battery(stage, points)[1][method]:
        masters = worker["whole"][20]["tensors"]
        for name, live in worker["final"]["live"].items():
            assert torch.equal(live, masters[f"{name}/value"]), name


@pytest.mark.parametrize(("stage", "points"), [RUNS[0], *RUNS[-2:]])
def test_adaloras_masks_under_sharding_are_those_of_the_unsharded_run(battery, stage: int, points: Any) -> None:
    """PEFT's own update loses them there. (Live weights equal the masters: see above.)"""
    expected = unsharded(battery, points)["adalora"][0]["final"]["live"]
    masks = {name: value != 0 for name, value in expected.items() if "lora_E" in name}
    assert sum(int(mask.sum()) for mask in masks.values()) == 8 * len(masks) < sum(m.numel() for m in masks.values())
    for worker in battery(stage, points)[1]["adalora"]:
        for name, mask in masks.items():
            assert torch.equal(worker["final"]["live"][name] != 0, mask), name
            assert torch.equal(worker["whole"][20]["tensors"][f"{name}/value"] != 0, mask), name


@pytest.mark.slow
@pytest.mark.xdist_group("battery-bfloat16")
@pytest.mark.parametrize("method", METHODS)
def test_the_setting_of_the_paper_presets_on_a_cpu(battery, method: str) -> None:
    """bfloat16 with gradient checkpointing under ZeRO-2: the live weights are the rounded masters."""
    changes = {"model__dtype": "bfloat16", "model__gradient_checkpointing": True, "training__max_steps": 10}
    found = battery(2, (), **changes)[1][method]
    curve = losses(found[0])
    assert len(curve) == 10 and sum(curve[-5:]) < sum(curve[:5])
    for worker in found:
        for name, live in worker["final"]["live"].items():
            assert live.dtype == torch.bfloat16, name
            assert torch.equal(live, worker["whole"][10]["tensors"][f"{name}/value"].bfloat16()), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stage", "points"), RUNS)
def test_the_export_is_the_trained_model(battery, base: str, stage: int, points: Any, method: str) -> None:
    folder, seen = battery(stage, points)
    kind = get_method(method).export_kind
    path = folder / method / "export"
    check_export(base, Export(kind, str(path)))
    assert not list(path.glob("*.bin")) and list(path.glob("*.safetensors"))
    logits = exported_logits(base, kind, str(path))
    # Against the largest logit: relative to logits near zero no two orders of summation agree.
    assert (logits - seen[method][0]["final"]["logits"]).abs().max() / logits.abs().max() < 1e-5
    untrained = exported_logits(base, "merged", base)
    assert (logits - untrained).abs().max() > 1e-2, "the export must be in use: it differs from the base model"


@needs_vllm
@pytest.mark.slow
@pytest.mark.xdist_group("battery")
def test_vllm_serves_every_export(battery, base: str, trial, tmp_path: Path, root: Path) -> None:
    """In float32 it says what transformers says with the same export, and that is not what the base model says."""
    folder, _ = battery(2, POINTS)
    kinds = {method: get_method(method).export_kind for method in METHODS}
    order = [None, *sorted(METHODS, key=lambda method: kinds[method])]  # adapters first: a merged model is an engine
    requests = [
        {"export": [kinds[method], str(folder / method / "export")] if method else None, "max_new_tokens": 6}
        for method in order
    ]
    wanted = trial("lora")
    questions = splits.test_records(wanted.data, wanted.evaluation.tasks, 4)
    prompts = [TASKS[task].prompt(record) for task, records in questions.items() for record in records]
    options = {"dtype": "float32", "batch_size": 32, "max_adapters": 1, "max_lora_rank": 32}
    job = {"base": base, "prompts": prompts, "options": options, "requests": requests}
    served = dict(zip(order, vllm_answers(root, tmp_path, job)["answers"], strict=True))
    engine = create_engine("transformers", base, **options)
    for method, request in zip(order, requests, strict=True):
        export = Export(*request["export"]) if request["export"] else None
        assert served[method] == complete(engine, prompts, export=export, max_new_tokens=6), method
        assert method is None or served[method] != served[None], f"{method}: the base model answered"


def load(path: str) -> Any:
    return load_base(path, torch.float32)


def exported_logits(base: str, kind: str, folder: str) -> torch.Tensor:
    """Loaded as a stranger would, with PEFT or transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(load(base), folder) if kind == "adapter" else None
    with torch.no_grad():
        return (model or AutoModelForCausalLM.from_pretrained(folder)).eval()(IDS).logits
