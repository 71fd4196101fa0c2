"""Real DeepSpeed workers: the same numbers at every ZeRO stage and number of workers, for every method."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SETTING = {
    "training__max_steps": 8,
    "training__log_every": 1,
    "training__micro_batch": 4,
    "training__warmup": 1,
    "training__zero_persistence": 0,
    "data__validation_records": 15,
    "methods__beamlora__interval": 2,
    "methods__adalora__delta_t": 1,
}


@pytest.fixture(scope="module")
def alone(request):
    """One process, no sharding, one micro-batch: what all others must equal."""
    return {}


@pytest.mark.parametrize(
    ("stage", "method"),
    [(2, "beamlora"), (3, "beamlora"), (3, "adalora"), pytest.param(2, "adalora", marks=pytest.mark.slow)],
)
def test_sharded_training_equals_unsharded(method, stage, alone, trial, train) -> None:
    if method not in alone:
        alone[method] = train(trial(method, **SETTING | {"training__micro_batch": 16, "training__zero_stage": 0}))
    reference = alone[method]
    found = train(trial(method, **SETTING, training__workers=2, training__zero_stage=stage))
    for metric in ("train/loss", "validation/loss"):
        assert found.series(metric) == pytest.approx(reference.series(metric), rel=1e-5), metric
    for metric in ("beam/operated_ranks", "beam/threshold", "adalora/budget"):
        assert found.series(metric) == reference.series(metric), metric
    for name, value in reference.final.items():
        torch.testing.assert_close(found.final[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_beam_steps_happen_and_are_reported(alone, trial, train) -> None:
    reference = alone.get("beamlora") or train(trial("beamlora", **SETTING))
    assert [step for step, row in reference.rows if "beam/threshold" in row] == [2, 4]
    assert all(count >= 1 for count in reference.series("beam/operated_ranks"))


def test_adalora_masks_survive_the_optimizer(alone, trial, train) -> None:
    """At the end the budget is the target rank, and what was pruned is zero in the weights of the forward pass."""
    found = train(trial("adalora", **SETTING, training__workers=2, training__zero_stage=3))
    singular = [value for name, value in found.final.items() if "lora_E" in name]
    budget = found.series("adalora/budget")
    assert budget == sorted(budget, reverse=True)
    assert 8 * len(singular) < budget[0] <= 12 * len(singular) and budget[-1] == 8 * len(singular)
    left = sum(int((value != 0).sum()) for value in singular)
    assert left <= 8 * len(singular)


def test_bfloat16_with_gradient_checkpointing(trial, train) -> None:
    """The setting of the preset `paper`, on the CPU."""
    setting = SETTING | {"model__dtype": "bfloat16", "model__gradient_checkpointing": True}
    found = train(trial("beamlora", **setting, training__workers=2, training__zero_stage=2))
    assert len(found.series("train/loss")) == 8
    assert all(0 < loss < 1 for loss in found.series("train/loss"))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_head": "chunked"},
        pytest.param({"loss_head": "all"}, marks=pytest.mark.slow),
        {"fused_adamw": True, "zero_stage": 2, "workers": 2},
        {"packing": True, "zero_stage": 2, "workers": 2},
        pytest.param({"packing": True, "zero_stage": 3, "workers": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_saves_time_and_memory_changes_no_number(changes, alone, trial, train) -> None:
    setting = SETTING | {"training__micro_batch": 16, "training__zero_stage": 0}
    reference = alone.get("beamlora") or train(trial("beamlora", **setting))
    changed = {f"training__{key}": value for key, value in changes.items()}
    found = train(trial("beamlora", **setting | {"training__micro_batch": 8} | changed))
    for metric in ("train/loss", "validation/loss"):
        assert found.series(metric) == pytest.approx(reference.series(metric), rel=1e-5), metric


def test_a_diverging_run_stops_with_advice(trial, train) -> None:
    """Weight decay of 1e30 flips and grows A by that factor each step, until it is infinite and B A is not a number."""
    with pytest.raises(AssertionError, match=r"FloatingPointError: the loss is .* lower the learning rate"):
        train(trial("lora", **SETTING, training__weight_decay=1e30, training__zero_stage=0))


@pytest.mark.parametrize("stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (2, 3))])
def test_a_gradient_that_is_not_finite_stops_the_run(stage: int, trial, train) -> None:
    """The loss stays finite: DeepSpeed would leave out every step, and the run end with an untrained adapter."""
    with pytest.raises(AssertionError, match=r"FloatingPointError: the gradient is not finite at step 1"):
        train(trial("adalora", **SETTING, training__zero_stage=stage, methods__adalora__orth_reg_weight=1e300))


def test_no_compiler_is_needed(tmp_path: Path) -> None:
    """A machine with Python and nothing else has no C++ compiler, which DeepSpeed would call on its first use."""
    script = tmp_path / "engine.py"
    script.write_text(
        "import os, torch\n"
        "os.environ.update(DS_ACCELERATOR='cpu', RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')\n"
        f"torch.distributed.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)\n"
        "from beamplatform.config.sections import TrainingSection\n"
        "from beamplatform.training.engine import make_engine\n"
        "training = TrainingSection(max_steps=1, global_batch=1, micro_batch=1)\n"
        "model = torch.nn.Linear(4, 4)\n"
        "make_engine(model, training, torch.optim.AdamW(model.parameters()), bf16=False)\n"
        "print('engine made')\n"
    )
    shell = tmp_path / "bin"
    shell.mkdir()
    (shell / "sh").symlink_to("/bin/sh")
    environment = {k: v for k, v in os.environ.items() if k != "CXX"}
    environment |= {"PATH": str(shell), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=900)
    assert "engine made" in done.stdout, done.stderr[-2000:]
