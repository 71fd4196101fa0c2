"""BeamLoRA's adapters in PEFT's own functions: they work, or are refused in one line and nothing has changed."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification

from beamlora import BeamLoraConfig, export_lora, get_beamlora_model, load_beamlora_model
from beamlora.layer import BeamLinear

SETTINGS: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 5,
    "target_modules": ["q_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
}
IDS = {"input_ids": torch.arange(24).reshape(2, 12)}


@pytest.fixture
def saved(tiny_llama: Any, randomized: Any, tmp_path: Path) -> Callable[..., tuple[str, Tensor]]:
    """Saves an adapter, of other values for each name, and tells what the model answered with it."""

    def save(name: str = "adapter", **options: Any) -> tuple[str, Tensor]:
        base = tiny_llama()
        base.save_pretrained(tmp_path / "base")
        base.name_or_path = str(tmp_path / "base")
        model = randomized(get_beamlora_model(base, BeamLoraConfig(**(SETTINGS | options)))).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data *= 1 + len(name) / 10
        model.save_pretrained(tmp_path / name)
        return str(tmp_path / name), model(**IDS).logits.detach()

    return save


def test_peft_loads_what_was_saved(tiny_llama: Any, saved: Any) -> None:
    folder, expected = saved()
    assert isinstance(PeftConfig.from_pretrained(folder), BeamLoraConfig)
    loaded = PeftModel.from_pretrained(tiny_llama(), folder)
    assert isinstance(loaded.peft_config["default"], BeamLoraConfig)
    torch.testing.assert_close(loaded.eval()(**IDS).logits, expected)
    torch.testing.assert_close(load_beamlora_model(tiny_llama(), folder).eval()(**IDS).logits, expected)
    few = PeftModel.from_pretrained(tiny_llama(), folder, low_cpu_mem_usage=True)
    torch.testing.assert_close(few.eval()(**IDS).logits, expected)
    torch.testing.assert_close(AutoPeftModelForCausalLM.from_pretrained(folder).eval()(**IDS).logits, expected)


def test_transformers_loads_what_was_saved(tiny_llama: Any, saved: Any) -> None:
    folder, expected = saved()
    base = tiny_llama()
    base.load_adapter(folder)
    torch.testing.assert_close(base.eval()(**IDS).logits, expected)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder).eval()(**IDS).logits, expected)


@pytest.mark.parametrize("first", ["beamlora", "peft"])
def test_importing_beamlora_is_enough(first: str, saved: Any) -> None:
    """Whichever is imported first; and beamlora alone imports neither PEFT nor torch."""
    folder, _ = saved()
    second = {"beamlora": "peft", "peft": "beamlora"}[first]
    script = (
        f"import sys, importlib.util, {first}\n"
        "assert 'peft' in sys.argv or not {'peft', 'torch'} & set(sys.modules)\n"
        "assert importlib.util.find_spec('peft') is not None\n"  # as transformers asks
        f"import {second}\n"
        f"from peft import PeftConfig; print(type(PeftConfig.from_pretrained({folder!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script, first], capture_output=True, text=True)
    assert done.stdout.strip() == "BeamLoraConfig", done.stderr


def test_a_second_adapter_is_loaded_and_switched_to(tiny_llama: Any, saved: Any) -> None:
    (first, one), (second, two) = saved("first"), saved("seconds", r=5)
    model = PeftModel.from_pretrained(tiny_llama(), first).eval()
    model.load_adapter(second, adapter_name="other")
    torch.testing.assert_close(model(**IDS).logits, one)
    model.set_adapter("other")
    torch.testing.assert_close(model(**IDS).logits, two)
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(model(**IDS).logits, one)
    assert all("other" not in layer.fused for layer in model.modules() if isinstance(layer, BeamLinear))


def test_hot_swapping(tiny_llama: Any, saved: Any, tmp_path: Path) -> None:
    (first, one), (second, two) = saved("first"), saved("seconds")
    model = PeftModel.from_pretrained(tiny_llama(), first).eval()
    hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(model(**IDS).logits, two)
    for name, options in {"r": {"r": 2}, "rank": {"rank_pattern": {"q_proj": 2}}, "score": {"score_scale": "unit"},
                          "temp": {"temperature": 0.02}}.items():  # fmt: skip
        folder, _ = saved(f"other-{name}", **options)
        with pytest.raises(ValueError, match=f"needs the same {name}.*under a name of its own"):
            hotswap_adapter(model, folder, adapter_name="default", torch_device="cpu")
    export_lora(model, tmp_path / "plain")
    with pytest.raises(ValueError, match="only be hot-swapped with another one"):
        hotswap_adapter(model, str(tmp_path / "plain"), adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(model(**IDS).logits, two)
    assert not torch.allclose(one, two)


def test_hot_swapping_of_plain_adapters_is_peft_s(tiny_llama: Any, saved: Any, tmp_path: Path) -> None:
    for name in ("first", "seconds"):
        folder, _ = saved(name)
        export_lora(load_beamlora_model(tiny_llama(), folder), tmp_path / f"plain-{name}")
    model = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "plain-first"))
    hotswap_adapter(model, str(tmp_path / "plain-seconds"), adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(model.eval()(**IDS).logits, saved("seconds")[1])


def test_ranks_padded_for_hot_swapping_are_refused(tiny_llama: Any, saved: Any) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), saved()[0])
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    with pytest.raises(ValueError, match=r"8 ranks and 3 scores.*export_lora"):
        model(**IDS)


def test_weighted_adapters_are_refused(tiny_llama: Any) -> None:
    model = get_beamlora_model(tiny_llama(), BeamLoraConfig(**SETTINGS))
    model.add_adapter("other", BeamLoraConfig(**SETTINGS))
    for kind in ("linear", "cat", "svd", "ties"):
        with pytest.raises(ValueError, match="without their rank scores: write plain LoRA adapters with"):
            model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum", combination_type=kind, density=0.5)
    assert "sum" not in model.peft_config


def test_weighted_adapters_of_lora_are_peft_s(tiny_llama: Any) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(**SETTINGS, init_lora_weights=False))
    model.add_weighted_adapter(["default"], [1.0], "same", combination_type="linear")
    expected = model(**IDS).logits
    model.set_adapter("same")
    torch.testing.assert_close(model(**IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", ["lora", "dora"])
def test_beside_a_lora(first: str, tiny_llama: Any, randomized: Any) -> None:
    """On the same layers and on others; each adapter is what it would be alone."""
    plain = LoraConfig(**SETTINGS, use_dora=first == "dora", init_lora_weights=False)
    targets = ["q_proj", "v_proj"]
    beam = BeamLoraConfig(**(SETTINGS | {"target_modules": targets}))
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), plain)
    expected = model.eval()(**IDS).logits
    model.add_adapter("beam", beam)
    torch.testing.assert_close(model(**IDS).logits, expected)
    randomized(model)
    model.set_adapter("beam")
    ours = model(**IDS).logits
    layers = [layer for layer in model.modules() if isinstance(layer, BeamLinear) and "beam" in layer.lora_beam]
    assert len(layers) == 2 * len(targets)
    alone = get_beamlora_model(tiny_llama(), beam).eval()
    values = {name.replace(".beam.", ".default."): p for name, p in model.named_parameters() if ".beam." in name}
    alone.load_state_dict(values, strict=False)
    torch.testing.assert_close(ours, alone(**IDS).logits)


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [(LlamaForSequenceClassification, "SEQ_CLS", "score"), (LlamaForTokenClassification, "TOKEN_CLS", "score")],
)
def test_classification(kind: Any, task: str, head: str, tiny_llama: Any, randomized: Any, tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        config = copy.deepcopy(tiny_llama().config)
        config.num_labels, config.pad_token_id = 3, 0
        return kind(config)

    config = BeamLoraConfig(**(SETTINGS | {"task_type": task}))
    model = randomized(get_beamlora_model(base(), config)).eval()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(f"{head}.modules_to_save" in name for name in trained)
    assert sum("lora_beam" in name for name in trained) == 4
    with torch.no_grad():
        getattr(model.base_model.model, head).modules_to_save["default"].weight.mul_(3)
    expected = model(**IDS).logits
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(load_beamlora_model(base(), tmp_path / "saved").eval()(**IDS).logits, expected)
    torch.testing.assert_close(
        PeftModel.from_pretrained(base(), str(tmp_path / "saved")).eval()(**IDS).logits, expected
    )
    export_lora(model, tmp_path / "plain")
    torch.testing.assert_close(
        PeftModel.from_pretrained(base(), str(tmp_path / "plain")).eval()(**IDS).logits, expected
    )


def test_trainable_tokens(tiny_llama: Any, randomized: Any, tmp_path: Path) -> None:
    config = BeamLoraConfig(**SETTINGS, trainable_token_indices=[1, 5])
    model = randomized(get_beamlora_model(tiny_llama(), config)).eval()
    tokens = next(p for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
    assert tokens.requires_grad
    tokens.data += 1.0
    expected = model(**IDS).logits
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(load_beamlora_model(tiny_llama(), tmp_path / "saved").eval()(**IDS).logits, expected)
    export_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "plain"))
    torch.testing.assert_close(plain.eval()(**IDS).logits, expected)


def structure(model: nn.Module) -> list[Any]:
    """All that adding an adapter may change in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        [(name, type(module), sorted(module.__dict__), module.training, *(len(getattr(module, h)) for h in hooks))
         for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()],
        [(name, id(b)) for name, b in model.named_buffers()],
    ]  # fmt: skip


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["q_proj", "embed_tokens"]}, "'model.embed_tokens' is a Embedding.*exclude_modules"),
    ({"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"1.mlp.down_proj": 40}}, "r=40 is too large"),
    (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "rank_pattern": {"1.self_attn.q_proj": 64}},
        "too large",
    ),
    ({"target_modules": ["q_proj", "norm"], "trainable_token_indices": [1]}, "is a LlamaRMSNorm"),
    (
        {"target_modules": ["nothing"]},
        "target_modules: the model has no layer 'nothing'; its linear layers are down_proj",
    ),
    (
        {"target_modules": ["q_proj", "v_porj"]},
        "target_modules: the model has no layer 'v_porj'; did you mean 'v_proj'",
    ),
    ({"target_modules": ".*nothing"}, "Target modules.*not found"),
    ({"rank_pattern": {"q_porj": 4}}, "rank_pattern: the model has no layer 'q_porj'; did you mean 'q_proj'"),
    ({"alpha_pattern": {"layers.9.q_proj": 4}}, "alpha_pattern: the model has no layer 'layers.9.q_proj'"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
@pytest.mark.parametrize("by", ["beamlora", "peft", "inject", "transformers", "second"])
def test_after_a_refusal_the_model_is_as_before(by: str, options: dict[str, Any], why: str, tiny_llama: Any) -> None:
    base: Any = tiny_llama()
    base.model.embed_tokens.weight.requires_grad_(False)
    calls: list[Any] = []
    base.model.layers[0].mlp.register_forward_hook(lambda *arguments: calls.append(arguments))
    config = BeamLoraConfig(**(SETTINGS | options))
    if by == "second":
        base = get_peft_model(base, LoraConfig(**SETTINGS))
    before = structure(base)
    add: dict[str, Callable[[], Any]] = {
        "beamlora": lambda: get_beamlora_model(base, config),
        "peft": lambda: get_peft_model(base, config),
        "inject": lambda: inject_adapter_in_model(config, base),
        "transformers": lambda: base.add_adapter(config),
        "second": lambda: base.add_adapter("second", config),
    }
    with pytest.raises(ValueError, match=why):
        add[by]()
    if by == "transformers":  # remembers by itself that it was asked
        base.__dict__.pop("_hf_peft_config_loaded", None)
        for part in before[0]:
            part[2][:] = [name for name in part[2] if name != "_hf_peft_config_loaded"]
    for one, other in zip(before, structure(base), strict=True):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True))
    base(**IDS)
    assert len(calls) == 1
    fresh = get_beamlora_model(tiny_llama(), BeamLoraConfig(**SETTINGS))
    assert sum(isinstance(module, BeamLinear) for module in fresh.modules()) == 4


def test_a_file_that_does_not_fit_leaves_the_model_as_before(tiny_llama: Any, saved: Any) -> None:
    folder, _ = saved()
    config = PeftConfig.from_pretrained(folder)
    config.r = 4
    config.save_pretrained(folder)
    base = tiny_llama()
    before = structure(base)
    with pytest.raises(ValueError, match="does not fit this base model"):
        load_beamlora_model(base, folder)
    assert str(before) == str(structure(base))


def test_a_model_that_has_computed_is_copied_and_pickled(tiny_llama: Any, randomized: Any, tmp_path: Path) -> None:
    model = randomized(
        get_beamlora_model(tiny_llama(), BeamLoraConfig(**(SETTINGS | {"target_modules": "all-linear"})))
    )
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    layer(x)  # and nothing asks k and v
    expected = model.eval()(**IDS).logits
    torch.testing.assert_close(copy.deepcopy(model)(**IDS).logits, expected)
    torch.save(model, tmp_path / "model.pt")
    torch.testing.assert_close(torch.load(tmp_path / "model.pt", weights_only=False)(**IDS).logits, expected)
