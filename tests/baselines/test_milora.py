"""MiLoRA as a package: the function is unchanged, and what it cannot adapt is refused."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from beamplatform.baselines.milora import get_milora_model, minor_components


def test_minor_components_by_hand() -> None:
    weight = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    b, a = minor_components(weight, 2)
    torch.testing.assert_close(b @ a, torch.diag(torch.tensor([0.0, 0.0, 2.0, 1.0])))
    torch.testing.assert_close(b.square().sum(0), torch.tensor([2.0, 1.0]))  # each factor has the root of S
    with pytest.raises(ValueError, match=r"r=5: .* \[4, 4\] has 4 singular components"):
        minor_components(weight, 5)


@pytest.mark.parametrize("alpha", [4, 8])
def test_the_function_is_unchanged_at_the_start(alpha: int) -> None:
    """GPT-2's Conv1D stores its weights transposed."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)).eval()
    ids = torch.arange(20)[None]
    before = base(ids).logits.detach()
    original = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = get_milora_model(base, LoraConfig(r=4, lora_alpha=alpha, target_modules=["c_attn", "c_proj"]))
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert not torch.allclose(layer.base_layer.weight, original["transformer.h.0.attn.c_attn.weight"], atol=1e-4)
    assert layer.lora_A["default"].weight.requires_grad and not layer.base_layer.weight.requires_grad


def test_what_it_cannot_adapt_is_refused() -> None:
    with pytest.raises(ValueError, match="use_dora=True"):
        get_milora_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, use_dora=True, target_modules=["0"]))
    with pytest.raises(ValueError, match="is a Embedding: MiLoRA adapts linear layers"):
        get_milora_model(nn.Sequential(nn.Embedding(4, 4)), LoraConfig(r=2, target_modules=["0"]))
