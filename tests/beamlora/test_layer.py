"""The adapted layer against the plain formula, in every way it is used."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from beamlora import BeamLoraConfig, get_beamlora_model
from beamlora.layer import BeamLinear

SHAPES = [(6, 6), (8, 3), (3, 8)]


def layer(d_in: int, d_out: int, randomized, **options: object) -> tuple[nn.Module, BeamLinear]:
    net = nn.Sequential(nn.Linear(d_in, d_out))
    config = {"r": 3, "lora_alpha": 5, "target_modules": ["0"], "temperature": 0.04}
    model = randomized(get_beamlora_model(net, BeamLoraConfig(**(config | options))))
    return model, net[0]


def plain_formula(
    x: torch.Tensor, adapted: BeamLinear, alpha: float, temperature: float, times_r: bool
) -> torch.Tensor:
    """Eq. 4 and 5 written out."""
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    g = adapted.lora_beam["default"].weight
    r = len(g)
    exponentials = torch.exp(g / temperature)
    s = exponentials / exponentials.sum()
    delta = sum(b[:, i, None] * a[None, i, :] * s[i] * (r if times_r else 1) for i in range(r))
    return adapted.base_layer(x) + alpha / r * x @ delta.T


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("scale", ["rank", "unit"])
def test_forward_and_gradients_are_the_plain_formula(d_in: int, d_out: int, scale: str, randomized) -> None:
    model, adapted = layer(d_in, d_out, randomized, score_scale=scale)
    model.double()
    x = torch.randn(2, 5, d_in, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    assert len(leaves) == 4
    outputs = (model(x), plain_formula(x, adapted, 5, 0.04, scale == "rank"))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in outputs]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(model, x)


def test_starts_as_the_base_model_and_as_plain_lora(tiny_net) -> None:
    model = tiny_net()
    x = torch.randn(3, 12)
    with model.disable_adapter():
        base = model(x)
    assert torch.equal(model(x), base)
    scores = next(m for m in model.modules() if isinstance(m, BeamLinear)).scores("default")
    assert torch.equal(scores(), torch.ones(5))


def test_bf16_base_with_float32_scores(tiny_llama, randomized) -> None:
    config = BeamLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = randomized(get_beamlora_model(tiny_llama(torch.bfloat16), config))
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert set(dtypes.values()) == {torch.float32}
    ids = torch.randint(0, 64, (2, 8))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    scores = [p for name, p in model.named_parameters() if "lora_beam" in name]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in scores)


def test_bf16_adapter_keeps_float32_scores(tiny_llama) -> None:
    from peft import get_peft_model

    config = BeamLoraConfig(r=4, target_modules=["q_proj"])
    model = get_peft_model(tiny_llama(torch.bfloat16), config, autocast_adapter_dtype=False)
    dtypes = {name.split(".")[-3]: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert dtypes == {"lora_A": torch.bfloat16, "lora_B": torch.bfloat16, "lora_beam": torch.float32}
    assert model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.dtype == torch.bfloat16


def test_dropout_acts_on_the_adapter_input_in_training_only(randomized) -> None:
    model, adapted = layer(6, 6, randomized, lora_dropout=0.5, fused=False)  # test_fused.py has the other path
    x = torch.randn(4, 6)
    model.eval()
    torch.testing.assert_close(model(x), plain_formula(x, adapted, 5, 0.04, True))
    model.train()
    torch.manual_seed(3)
    trained = model(x)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(
        trained,
        plain_formula(dropped, adapted, 5, 0.04, True) - adapted.base_layer(dropped) + adapted.base_layer(x),
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_llama, randomized, reentrant: bool) -> None:
    ids = torch.randint(0, 64, (2, 8))
    gradients = []
    for checkpointing in (False, True):
        config = BeamLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        base = tiny_llama()
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
            base.enable_input_require_grads()  # reentrant checkpoints stop at inputs without gradients
        model = randomized(get_beamlora_model(base, config)).train()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_merge_and_unmerge(d_in: int, d_out: int, safe: bool, randomized) -> None:
    model, adapted = layer(d_in, d_out, randomized)
    x = torch.randn(4, d_in)
    before, weight = model(x), adapted.base_layer.weight.clone()
    model.merge_adapter(safe_merge=safe)
    assert not torch.allclose(adapted.base_layer.weight, weight)
    torch.testing.assert_close(model(x), before)
    model.unmerge_adapter()
    torch.testing.assert_close(adapted.base_layer.weight, weight)
    torch.testing.assert_close(model(x), before)


def test_several_adapters_of_both_kinds_merge_together(randomized) -> None:
    model, adapted = layer(6, 8, randomized)
    model.add_adapter("second", BeamLoraConfig(r=2, target_modules=["0"], temperature=0.03))
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["0"]))
    randomized(model)
    assert list(adapted.lora_beam) == ["default", "second"]
    x = torch.randn(4, 6)
    outputs = {}
    for name in ("default", "second", "plain"):
        model.set_adapter(name)
        outputs[name] = model(x)
    base = adapted.base_layer(x)
    total = base + sum(output - base for output in outputs.values())
    model.base_model.set_adapter(["default", "second", "plain"])
    torch.testing.assert_close(model(x), total)
    model.merge_adapter()
    torch.testing.assert_close(model(x), total)
    model.unmerge_adapter()
    names = ["default", "second", "plain", "__base__"]
    mixed = model.eval()(x, adapter_names=names)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], outputs.get(name, base)[i])
    model.delete_adapter("second")
    assert list(adapted.lora_beam) == ["default"]


def test_switching_adapters_trains_the_active_one_only(randomized) -> None:
    model, _ = layer(6, 8, randomized)
    model.add_adapter("second", BeamLoraConfig(r=2, target_modules=["0"]))
    for active in ("second", "default"):
        model.set_adapter(active)
        trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {active}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unload(tiny_llama, randomized, dtype: torch.dtype) -> None:
    config = BeamLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = randomized(get_beamlora_model(tiny_llama(dtype), config)).eval()
    ids = torch.randint(0, 64, (2, 8))
    adapted = model(input_ids=ids).logits
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BeamLinear) for module in merged.modules())
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted, **tolerance)


def test_gpt2_conv1d_layers(randomized) -> None:
    base = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    config = BeamLoraConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
    model = randomized(get_beamlora_model(base, config)).eval()
    adapted = [m for m in model.modules() if isinstance(m, BeamLinear)]
    assert len(adapted) == 2 and all(isinstance(m.base_layer, Conv1D) for m in adapted)
    ids = torch.randint(0, 32, (2, 8))
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(model.merge_and_unload()(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-5)


def test_ranks_by_layer(tiny_llama, randomized) -> None:
    config = BeamLoraConfig(r=4, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 6})
    model = randomized(get_beamlora_model(tiny_llama(), config))
    sizes = {n.split(".")[-4]: p.numel() for n, p in model.named_parameters() if "lora_beam" in n}
    assert sizes == {"q_proj": 4, "down_proj": 6}
    assert model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.isfinite().all()


def test_model_can_be_copied(tiny_net, randomized) -> None:
    model = randomized(tiny_net())
    x = torch.randn(3, 12)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
