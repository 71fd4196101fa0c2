"""Small models for the tests of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from beamlora import BeamLoraConfig, get_beamlora_model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where all that a test makes lies."""
    with torch.device(request.param):
        yield request.param


@pytest.fixture
def tiny_llama() -> Callable[..., PreTrainedModel]:
    """Builds the same random two-layer Llama every time."""

    def build(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
        return LlamaForCausalLM(config).to(dtype)

    return build


@pytest.fixture
def tiny_net() -> Callable[..., nn.Module]:
    """Builds a two-layer net with a BeamLoRA adapter on both layers, trained nowhere yet."""

    def build(**options: object) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7))
        defaults = {"r": 5, "lora_alpha": 10, "target_modules": ["0", "2"], "p_init": 0.5, "interval": 4}
        return get_beamlora_model(net, BeamLoraConfig(**(defaults | options)))

    return build


@pytest.fixture
def randomized() -> Callable[[nn.Module], nn.Module]:
    """Gives every adapter parameter random values, so that B and the scores are not zero."""

    def fill(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                scale = 0.05 if "lora_beam" in name else 0.3
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * scale)
        return model

    return fill
