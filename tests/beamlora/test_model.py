"""Building, saving, loading and exporting."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from torch import nn

from beamlora import BeamLoraConfig, export_lora, get_beamlora_model, load_beamlora_model
from beamlora.layer import BeamLinear

IDS = torch.arange(24).reshape(2, 12)


def adapted(tiny_llama, randomized, **options: object) -> PeftModel:
    defaults = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        "temperature": 0.04,
    }
    return randomized(get_beamlora_model(tiny_llama(), BeamLoraConfig(**(defaults | options)))).eval()


# --- building -----------------------------------------------------------------------------------------------


def test_rank_above_a_layers_smaller_side(tiny_llama) -> None:
    base = tiny_llama().requires_grad_(True)
    config = BeamLoraConfig(r=17, target_modules=["q_proj", "k_proj"])
    message = r"layer 'model\.layers\.0\.self_attn\.k_proj' maps 32 to 16 features: r=17 is too large, at most 16"
    with pytest.raises(ValueError, match=message):
        get_beamlora_model(base, config)
    # The base model is as before: its own layers, all of them trainable, ready for another try.
    assert not any(isinstance(module, BeamLinear) for module in base.modules())
    assert all(p.requires_grad for p in base.parameters())
    get_beamlora_model(base, BeamLoraConfig(r=16, target_modules=["q_proj", "k_proj"]))
    get_beamlora_model(
        tiny_llama(), BeamLoraConfig(r=17, rank_pattern={"k_proj": 16}, target_modules=["q_proj", "k_proj"])
    )


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Embedding(8, 8), "Embedding"),
        (nn.Conv2d(4, 4, 3), "Conv2d"),
        (nn.MultiheadAttention(8, 2), "MultiheadAttention"),
    ],
)
def test_other_layers_are_refused_by_name(layer: nn.Module, kind: str) -> None:
    net = nn.ModuleDict({"first": nn.Linear(8, 8), "second": layer})
    with pytest.raises(ValueError, match=f"layer 'second' is a {kind}: BeamLoRA adapts nn.Linear"):
        get_beamlora_model(net, BeamLoraConfig(r=2, target_modules=["first", "second"]))
    assert net["second"] is layer and type(net["first"]) is nn.Linear
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_quantized_weights_are_refused_by_name() -> None:
    net = nn.ModuleDict({"first": nn.Linear(8, 8)})
    net["first"].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layer 'first': its weights are Parameter of torch\.int8"):
        get_beamlora_model(net, BeamLoraConfig(r=2, target_modules=["first"]))


def test_second_building_and_foreign_config_are_refused(tiny_llama) -> None:
    model = get_beamlora_model(tiny_llama(), BeamLoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="the model already has an adapter"):
        get_beamlora_model(model.base_model.model, BeamLoraConfig(r=4, target_modules=["k_proj"]))
    with pytest.raises(ValueError, match="config is a LoraConfig: must be a BeamLoraConfig"):
        get_beamlora_model(tiny_llama(), LoraConfig(r=4))


def test_only_the_adapter_is_trainable(tiny_llama) -> None:
    model = get_beamlora_model(tiny_llama(), BeamLoraConfig(r=4, target_modules=["q_proj"]))
    kinds = {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}
    assert kinds == {"lora_A", "lora_B", "lora_beam"}


def test_initial_values(tiny_llama) -> None:
    model = get_beamlora_model(tiny_llama(), BeamLoraConfig(r=16, target_modules=["q_proj"]))
    torch.manual_seed(0)
    expected = nn.init.kaiming_uniform_(torch.empty(16, 32), a=5**0.5)
    for name, p in model.named_parameters():
        if "lora_A" in name:
            assert p.abs().max() <= (1 / 32) ** 0.5  # Kaiming-uniform with a = sqrt(5)
            assert p.std().item() == pytest.approx(expected.std().item(), rel=0.1)
        elif "lora_" in name:
            assert not p.any()


# --- saving with scores -------------------------------------------------------------------------------------


def test_saved_adapter_loads_with_its_scores(tiny_llama, randomized, tmp_path) -> None:
    model = adapted(tiny_llama, randomized, rank_pattern={"down_proj": 6}, lora_dropout=0.1)
    model.save_pretrained(tmp_path)
    loaded = load_beamlora_model(tiny_llama(), tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.peft_config["default"].temperature == 0.04
    trainable = load_beamlora_model(tiny_llama(), tmp_path, "again", is_trainable=True)
    kinds = {name.split(".")[-3] for name, p in trainable.named_parameters() if p.requires_grad}
    assert kinds == {"lora_A", "lora_B", "lora_beam"}
    assert torch.equal(trainable.eval()(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_stock_peft_refuses_a_saved_adapter(tiny_llama, randomized, tmp_path, monkeypatch) -> None:
    """A PEFT that has not heard of beamlora does not load it as a LoRA without its scores."""
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, "BEAMLORA")
    adapted(tiny_llama, randomized).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BEAMLORA"
    with pytest.raises(KeyError, match="BEAMLORA"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_adapter_for_another_model_is_refused(tiny_llama, randomized, tmp_path, tiny_net) -> None:
    model = adapted(tiny_llama, randomized)
    model.save_pretrained(tmp_path)
    narrow = nn.ModuleDict({"model": nn.ModuleDict({"q_proj": nn.Linear(8, 8)})})
    with pytest.raises(ValueError):
        load_beamlora_model(narrow, tmp_path)
    smaller = tiny_llama()
    smaller.model.layers = smaller.model.layers[:1]
    with pytest.raises(ValueError, match="does not fit this base model"):
        load_beamlora_model(smaller, tmp_path)


def test_plain_lora_adapter_is_refused(tiny_llama, tmp_path) -> None:
    get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this is a LORA adapter"):
        load_beamlora_model(tiny_llama(), tmp_path)


# --- exporting ----------------------------------------------------------------------------------------------

STOCK_PEFT = """
    import sys

    class NoBeamLora:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "beamlora":
                raise ImportError("beamlora is not installed here")

    sys.meta_path.insert(0, NoBeamLora())
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    base = AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=dtype)
    model = PeftModel.from_pretrained(base, folder + "/adapter").eval()
    assert "beamlora" not in sys.modules
    with torch.no_grad():
        torch.save(model(input_ids=torch.arange(24).reshape(2, 12)).logits, folder + "/logits.pt")
"""


def test_export_in_stock_peft_without_beamlora_gives_the_same_logits(tiny_llama, randomized, tmp_path) -> None:
    model = adapted(tiny_llama, randomized, rank_pattern={"down_proj": 6}, alpha_pattern={"q_proj": 3})
    tiny_llama().save_pretrained(tmp_path / "base")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    export_lora(model, tmp_path / "adapter")
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())

    command = [sys.executable, "-c", textwrap.dedent(STOCK_PEFT), str(tmp_path), "float32"]
    subprocess.run(command, check=True, cwd=tmp_path, env=_environment_without_the_project(), timeout=900)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    ours = model(input_ids=IDS).logits
    with model.disable_adapter():
        base = model(input_ids=IDS).logits
    assert (ours - base).abs().max() > 0.1 * base.abs().max()
    assert (logits - ours).abs().max() <= 1e-5 * ours.abs().max()


def _environment_without_the_project() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def test_exported_files(tiny_llama, randomized, tmp_path) -> None:
    model = adapted(tiny_llama, randomized, lora_alpha=12)
    for folder in ("one", "two"):
        export_lora(model, tmp_path / folder)
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4 and config["lora_alpha"] == 12
    assert config["inference_mode"] and config["target_modules"] == sorted(config["target_modules"])
    assert not {"p_init", "interval", "temperature"} & config.keys()
    assert config == LoraConfig.from_pretrained(tmp_path / "one").to_dict() | {
        "peft_type": "LORA",
        "target_modules": config["target_modules"],
    }
    tensors = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B"}
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_export_of_unit_scale_second_adapter_and_modules_to_save(tiny_llama, randomized, tmp_path) -> None:
    model = adapted(tiny_llama, randomized)
    second = BeamLoraConfig(
        r=5, target_modules=["q_proj"], score_scale="unit", modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    model.add_adapter("second", second)
    model.set_adapter("second")
    randomized(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save.second" in name:
                p.add_(0.1)
    export_lora(model, tmp_path, "second")
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    ours = model.eval()(input_ids=IDS).logits
    assert (plain(input_ids=IDS).logits - ours).abs().max() <= 1e-5 * ours.abs().max()


def test_export_of_what_is_no_beamlora_adapter(tiny_llama, tmp_path) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"'default' is not a BeamLoRA adapter; the model has \['default'\]"):
        export_lora(model, tmp_path)


def test_package_imports_no_trainer_no_deepspeed(root: Path) -> None:
    code = "import sys, beamlora; print({'transformers.trainer', 'deepspeed', 'ray'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
    import beamlora

    assert beamlora.BeamLoraCallback.__name__ == "BeamLoraCallback"
    with pytest.raises(AttributeError, match="no attribute 'Beam'"):
        _ = beamlora.Beam
