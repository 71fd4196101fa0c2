"""One battery for every registered method: train, loss falls, export, logits equal. A new method is in by its name."""

from __future__ import annotations

import pytest
import torch

from beamplatform.errors import UserError
from beamplatform.inference import Export, check_export
from beamplatform.methods import METHODS, get_method
from beamplatform.models import load_base, resolve_path
from beamplatform.suite import ModelSection

SETTING = {
    "training__max_steps": 20,
    "training__log_every": 1,
    "training__micro_batch": 16,
    "data__validation_records": 16,
    "methods__beamlora__interval": 4,
}
IDS = torch.arange(3, 99).reshape(4, 24)
"""The tokens that `one_worker.py` gives the trained model."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("workers", "stage"), [(1, 2), (2, 3)])
def test_battery(method: str, workers: int, stage: int, trial, train) -> None:
    found = train(
        trial(
            method,
            **SETTING | {"training__workers": workers, "training__zero_stage": stage, "training__micro_batch": 8},
        )
    )
    losses = found.series("train/loss")
    assert sum(losses[-5:]) < sum(losses[:5])

    kind = get_method(method).export_kind
    folder = found.folder / "export"
    export = Export(kind, str(folder))
    check_export(resolve_path("tiny"), export)
    assert not list(folder.glob("*.bin")) and list(folder.glob("*.safetensors"))
    logits = _exported_logits(kind, str(folder))
    # Against the largest logit: relative to logits near zero no two orders of summation agree.
    difference = (logits - found.final["logits"]).abs().max() / logits.abs().max()
    assert difference < 1e-5
    base = _exported_logits("base", resolve_path("tiny"))
    assert (logits - base).abs().max() > 1e-2, "the export must be in use: it differs from the base model"


def _exported_logits(kind: str, folder: str) -> torch.Tensor:
    """Loaded as a stranger would, with PEFT or transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if kind == "adapter":
        model = PeftModel.from_pretrained(load_base(ModelSection(path="tiny", dtype="float32"), on_gpu=False), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_equal_to_peft_by_hand(trial, train) -> None:
    """LoRA through the platform and LoRA with PEFT, AdamW and a for loop: the same losses."""
    from peft import LoraConfig, get_peft_model

    from beamplatform.data.batches import BatchPlan, collate
    from beamplatform.data.examples import tokenise
    from beamplatform.data.splits import training_records
    from beamplatform.models import load_tokenizer

    wanted = trial(
        "lora",
        **SETTING | {"training__max_steps": 5, "training__schedule": "constant", "training__warmup": 0},
    )
    found = train(wanted)
    tokenizer = load_tokenizer("tiny")
    records = training_records(wanted.data, wanted.evaluation.tasks).train
    examples = tokenise(records, tokenizer, max_length=128, loss_on="response")
    torch.manual_seed(wanted.seed)
    values = wanted.hyperparameters
    model = get_peft_model(
        load_base(wanted.model, on_gpu=False),
        LoraConfig(r=8, lora_alpha=16, target_modules=list(values["target_modules"]), task_type="CAUSAL_LM"),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=values["learning_rate"], weight_decay=0.0)
    losses = []
    batches = BatchPlan([len(e.ids) for e in examples], 16, wanted.seed).from_step(0)
    for _, indices in zip(range(5), batches, strict=False):
        loss = model(**collate([examples[i] for i in indices], tokenizer.pad_token_id, "cpu")).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert found.series("train/loss") == pytest.approx(losses, rel=1e-5)


def test_adaloras_regulariser_has_pefts_gradient() -> None:
    from beamplatform.methods.adalora import orthogonality_gradient

    a = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    torch.norm(a @ a.T - torch.eye(4, dtype=torch.float64), p="fro").backward()
    torch.testing.assert_close(orthogonality_gradient(a.detach()), a.grad)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("beamlora", {"methods__beamlora__interval": 15}, "interval"),
        ("adalora", {"methods__adalora__delta_t": 50}, "no budget update fits between step 2 .* and step 14"),
    ],
)
def test_a_schedule_that_never_fires_is_refused(method: str, changes, message: str, trial) -> None:
    with pytest.raises(ValueError, match=message):
        trial(method, **SETTING | changes).make_method(1000)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown method 'lorra'; allowed: lora, dora, adalora, beamlora"):
        get_method("lorra")
