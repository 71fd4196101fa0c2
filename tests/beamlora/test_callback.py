"""The search inside transformers' Trainer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from beamlora import BeamLoraCallback, BeamLoraConfig, BeamReport, get_beamlora_model


def trainer(
    tiny_llama, folder: Path, callback: BeamLoraCallback, threshold_schedule: str = "cosine", **options: object
) -> Trainer:
    config = BeamLoraConfig(
        r=4, lora_dropout=0.1, target_modules="all-linear", p_init=0.5, interval=3, task_type="CAUSAL_LM",
        threshold_schedule=threshold_schedule,
    )  # fmt: skip
    torch.manual_seed(1)
    model = get_beamlora_model(tiny_llama(), config)
    ids = torch.randint(0, 64, (16, 8), generator=torch.Generator().manual_seed(2))
    defaults = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "save_steps": 4,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(**(defaults | options))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])


def adapter(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}


def beam_rows(run: Trainer) -> list[dict]:
    return [row for row in run.state.log_history if "beam/threshold" in row]


def test_resumed_training_is_the_uninterrupted_training_bitwise(tiny_llama, tmp_path: Path) -> None:
    reports: list[BeamReport] = []
    whole = trainer(tiny_llama, tmp_path / "whole", BeamLoraCallback(seed=5, on_report=reports.append))
    whole.train()
    assert [report.step for report in reports] == [3, 6]
    assert [(row["step"], row["beam/operated_ranks"]) for row in beam_rows(whole)] == [
        (report.step, report.operated_ranks) for report in reports
    ]
    assert all(report.operated_ranks > 0 for report in reports)

    # Checkpoint 4 lies between the snapshot (after step 4) and the beam step that uses it (step 6).
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "rest" / "checkpoint-4")
    resumed = trainer(tiny_llama, tmp_path / "rest", BeamLoraCallback(seed=5))
    resumed.train(resume_from_checkpoint=True)
    expected = adapter(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter(resumed).items())
    assert [row["beam/threshold"] for row in beam_rows(resumed)] == [row["beam/threshold"] for row in beam_rows(whole)]

    # A checkpoint somewhere else has to be named; a checkpoint without the search's state does not resume
    # silently.
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "kept")
    moved = trainer(tiny_llama, tmp_path / "moved", BeamLoraCallback(seed=5, resume_from=tmp_path / "kept"))
    moved.train(resume_from_checkpoint=str(tmp_path / "kept"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter(moved).items())
    lost = trainer(tiny_llama, tmp_path / "lost", BeamLoraCallback(seed=5))
    with pytest.raises(FileNotFoundError, match=r"training resumes at step 4 .* BeamLoraCallback\(resume_from="):
        lost.train(resume_from_checkpoint=str(tmp_path / "kept"))


def test_curve_follows_the_trainers_schedule(tiny_llama, tmp_path: Path) -> None:
    callback = BeamLoraCallback(seed=5)
    linear = {"lr_scheduler_type": "linear", "warmup_steps": 2, "max_steps": 6, "save_strategy": "no"}
    trainer(tiny_llama, tmp_path, callback, threshold_schedule="match_lr", **linear).train()
    assert callback.search is not None
    assert callback.search.seed == 5
    assert callback.search.schedule.curve == "linear"
    assert callback.search.temperature == 0.05  # from the peak, not from the warm-up's first learning rate
