"""A head that shares the embedding's weight can be adapted: what is exported says what the trained model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from method_run import IDS, exported_logits, train

from beamplatform.config.sections import TrainingSection
from beamplatform.inference import Export, check_export
from beamplatform.methods import METHODS, get_method
from beamplatform.methods.base import RunPlan
from beamplatform.models.loading import load_base, load_tokenizer, resolve_path
from beamplatform.models.shapes import model_shapes
from beamplatform.sweep.plan.memory_estimate import check_head, target_shapes

ADAPTERS = [name for name in METHODS if name != "full"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("base"))
    model: Any = load_base("tiny", torch.float32)
    del model.model.layers[2:]
    model.config.num_hidden_layers = 2
    model.save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's advice on tied weights
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapted_head_is_exported_as_it_was_trained(name: str, base: str, tmp_path: Path) -> None:
    method, model = train(name, base, ["q_proj", "lm_head"])
    with torch.no_grad():
        trained = model(IDS).logits
    method.export(model, tmp_path / "export")
    check_export(base, Export(method.export_kind, str(tmp_path / "export")))
    logits = exported_logits(method, base, str(tmp_path / "export"))
    with torch.no_grad():
        before = load_base(base, torch.float32).eval()(IDS).logits
    assert (logits - trained).abs().max() / trained.abs().max() < 1e-5
    assert (logits - before).abs().max() > 0.1, "it has learned something"


@pytest.mark.parametrize("name", ["adalora", "pissa", "milora", "increlora"])
def test_an_adapter_of_some_layers_names_these_alone(name: str, base: str, tmp_path: Path) -> None:
    method, model = train(name, base, ["1.self_attn.q_proj", "down_proj"])
    method.export(model, tmp_path)
    check_export(base, Export("adapter", str(tmp_path)))
    named = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert sorted(named) == [
        "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj",
    ]  # fmt: skip


def test_where_an_adapted_head_could_not_do_what_it_is_for() -> None:
    model = model_shapes("tiny", "tiny")
    assert model.head_is_tied and model.head == {"lm_head": (1472, 128)}

    def check(name: str, targets: list[str], **training: Any) -> None:
        values = {"learning_rate": 1e-3, "target_modules": targets}
        method = get_method(name)(values, RunPlan(total_steps=100, schedule="constant", seed=0))
        section = TrainingSection(max_steps=100, **training)
        check_head(method, model, target_shapes(model, method.values), section)

    with pytest.raises(
        ValueError, match=r"loss_head=chunked computes the loss without the adapter of lm_head; allowed"
    ):
        check("lora", ["lm_head"], loss_head="chunked")
    with pytest.raises(ValueError, match=r"lm_head shares its weight .* dora has to .*zero_stage=3; allowed: 0, 1, 2"):
        check("dora", ["q_proj", "lm_head"], zero_stage=3)
    check("lora", ["q_proj", "lm_head"], zero_stage=3)
    check("dora", ["q_proj"], zero_stage=3, loss_head="all")


def test_the_shipped_models_head_is_tied() -> None:
    model: Any = load_base(resolve_path("tiny"), torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
