"""Each method against its source: PEFT's layers in a plain loop, transformers' Trainer; and what a method promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from beamplatform.config.trial import Trial
from beamplatform.data.batches import BatchPlan, collate
from beamplatform.data.examples import Example, tokenise
from beamplatform.data.splits import training_records
from beamplatform.models.loading import load_base, load_tokenizer
from beamplatform.training.loss import summed_loss

STEPS = 10
SETTING = {
    "training__max_steps": STEPS,
    "training__log_every": 1,
    "training__micro_batch": 16,
    "training__schedule": "constant",
    "training__warmup": 0,
    "training__gradient_clipping": 0.01,  # below the gradient's norm, so that it is clipped
    "data__validation_records": 16,
    "methods__adalora__delta_t": 2,
}


def batches(trial: Trial) -> Iterator[list[Example]]:
    """The examples of each step, in the platform's order."""
    records = training_records(trial.data, trial.evaluation.tasks).train
    examples = tokenise(records, load_tokenizer("tiny"), max_length=128, loss_on="response")
    plan = BatchPlan([len(e.ids) for e in examples], trial.training.global_batch, trial.seed)
    for _, indices in zip(range(STEPS), plan.from_step(0), strict=False):
        yield [examples[i] for i in indices]


def by_hand(trial: Trial, configure: Callable[[Any], Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """PEFT, AdamW and a for loop: the loss of each step and the trained parameters."""
    from peft import get_peft_model

    torch.set_num_threads(1)  # as in the worker: a singular value decomposition depends on it in its last bits
    torch.manual_seed(trial.seed)
    model = get_peft_model(load_base("tiny", torch.float32), configure(trial.hyperparameters))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=trial.hyperparameters["learning_rate"], weight_decay=0.0)
    pad = load_tokenizer("tiny").pad_token_id
    losses = []
    for step, batch in enumerate(batches(trial), start=1):
        inputs = collate(batch, pad, torch.device("cpu"))
        with torch.no_grad():
            losses.append(float(summed_loss(model, inputs, "all")) / sum(example.targets for example in batch))
        model(**inputs).loss.backward()  # AdaLoRA adds its regulariser here
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.01)
        assert norm > 0.01
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return losses, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def lora(values: dict[str, Any], **more: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, target_modules=values["target_modules"], task_type="CAUSAL_LM", **{"lora_alpha": 16} | more)


def adalora(values: dict[str, Any]) -> Any:
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        target_r=8, init_r=12, tinit=1, tfinal=3, deltaT=2, total_step=STEPS, lora_alpha=16,
        target_modules=values["target_modules"], task_type="CAUSAL_LM",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "configure"),
    [
        ("lora", lora),
        ("dora", lambda values: lora(values, use_dora=True)),
        ("pissa", lambda values: lora(values, init_lora_weights="pissa", lora_alpha=8)),
        ("adalora", adalora),
    ],
)
def test_step_for_step_equal_to_peft_by_hand(method: str, configure: Callable[[Any], Any], trial, train) -> None:
    wanted = trial(method, **SETTING)
    losses, parameters = by_hand(wanted, configure)
    found = train(wanted)
    assert found.series("train/loss") == pytest.approx(losses, rel=1e-5)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-2)
    logits = found.final.pop("logits")
    assert logits.isfinite().all() and found.final.keys() == parameters.keys()
    for name, value in parameters.items():
        # AdaLoRA's rate is 3e-2: Adam moves by so much what has a gradient of rounding's size, too.
        torch.testing.assert_close(found.final[name], value, rtol=1e-4, atol=1e-4 if method == "adalora" else 2e-6)
        if "lora_E" in name:
            assert torch.equal(found.final[name] == 0, value == 0), f"{name}: another mask"


def test_full_fine_tuning_is_that_of_transformers_trainer(trial, train, tmp_path) -> None:
    from torch.utils.data import IterableDataset
    from transformers import Trainer, TrainingArguments

    wanted = trial("full", **SETTING)
    found = train(wanted)
    pad = load_tokenizer("tiny").pad_token_id

    class InOrder(IterableDataset):
        def __iter__(self) -> Iterator[Example]:
            for batch in batches(wanted):
                yield from batch

    arguments = TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=16, learning_rate=5e-4,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.01, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    model = load_base("tiny", torch.float32).requires_grad_(True)
    trainer = Trainer(
        model, arguments, train_dataset=InOrder(), data_collator=lambda part: collate(part, pad, torch.device("cpu"))
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert found.series("train/loss") == pytest.approx(losses, rel=1e-5)
    trained = dict(model.named_parameters())
    assert trained.keys() == found.final.keys() - {"logits"}
    for name, value in trained.items():
        torch.testing.assert_close(found.final[name], value.detach(), rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize(("method", "end"), [("pissa", slice(None, 8)), ("milora", slice(-8, None))])
def test_components_are_split_and_not_changed(method: str, end: slice, trial) -> None:
    """Base + adapter is the original weight, and the adapter holds the largest or the smallest singular values."""
    wanted = trial(method, **SETTING)
    original = dict(load_base("tiny", torch.float32).named_parameters())
    torch.manual_seed(0)
    model = wanted.make_method(1000).build(load_base("tiny", torch.float32))
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if hasattr(layer, "lora_A")}
    assert len(layers) == 5 * model.config.num_hidden_layers
    for name, layer in layers.items():
        weight = original[f"{name}.weight"]
        part = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(layer.get_base_layer().weight + part, weight, rtol=1e-5, atol=1e-6, msg=name)
        expected = torch.linalg.svdvals(weight)[end]
        torch.testing.assert_close(torch.linalg.svdvals(part)[:8], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_in_bfloat16_the_export_is_off_by_no_more_than_a_merged_model(method: str, trial, tmp_path) -> None:
    """The frozen weights W - s B0 A0 are rounded, which a LoRA against W cannot know; but so is a merged model."""
    from safetensors.torch import load_file

    wanted = trial(method, **SETTING).make_method(1000)
    original = dict(load_base("tiny", torch.float32).bfloat16().named_parameters())
    torch.manual_seed(0)
    model = wanted.build(load_base("tiny", torch.float32).bfloat16())
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if hasattr(layer, "lora_A")}
    with torch.no_grad():
        for layer in layers.values():  # as if it had been trained
            layer.lora_B["default"].weight.add_(0.01 * torch.randn_like(layer.lora_B["default"].weight))
    wanted.export(model, tmp_path)
    exported = load_file(tmp_path / "adapter_model.safetensors")
    off, merged_off = 0.0, 0.0
    for name, layer in layers.items():
        a, b = (exported[f"base_model.model.{name}.lora_{kind}.weight"].float() for kind in "AB")
        update = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
        trained = layer.get_base_layer().weight.float() + layer.scaling["default"] * update
        off += float((original[f"{name}.weight"].float() + b @ a - trained).square().sum())
        merged_off += float((trained.bfloat16().float() - trained).square().sum())
    assert 0 < off < 1.2 * merged_off


def test_adaloras_regulariser_has_pefts_gradient() -> None:
    from beamplatform.baselines.orthogonality import orthogonality_gradient

    a = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    torch.norm(a @ a.T - torch.eye(4, dtype=torch.float64), p="fro").backward()
    torch.testing.assert_close(orthogonality_gradient(a.detach()), a.grad)
