"""Examples in one row see themselves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from beamplatform.data.batches import collate, pack
from beamplatform.data.examples import Example
from beamplatform.models.shapes import ModelShapes
from beamplatform.training.attention import attend_within_examples, check_packing
from beamplatform.training.loss import summed_loss

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
CONFIGS = {
    "llama": LlamaConfig(num_key_value_heads=4),
    "qwen2": Qwen2Config(num_key_value_heads=2),
    "mistral": MistralConfig(num_key_value_heads=2, sliding_window=8),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_loss_and_gradients_are_those_of_each_example_alone(kind: str, device: str) -> None:
    torch.manual_seed(0)
    config = CONFIGS[kind]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config.update({**sizes, "head_dim": 16, "vocab_size": 200, "use_cache": False})
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_config(config).to(device, dtype)
    rows = [torch.randint(200, (length,)).tolist() for length in (12, 5, 30)]
    examples = [Example(row, row) for row in rows]

    def measured(*batches: dict) -> list[torch.Tensor]:
        loss = torch.stack([summed_loss(model, batch, "counted") for batch in batches]).sum()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    alone = measured(*(collate([example], 0, device) for example in examples))
    if device == "cuda":
        attend_within_examples(model)
    packed = measured(pack(examples, device))
    tolerance = 0.03 if device == "cuda" else 1e-5
    for found, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_a_model_with_attention_of_its_own_is_refused() -> None:
    model = ModelShapes("LlamaForCausalLM", 1, {}, {})
    check_packing(model)
    with pytest.raises(ValueError, match=r"training\.packing: BloomForCausalLM has its own attention, which"):
        check_packing(replace(model, name="BloomForCausalLM", exchangeable_attention=False))
