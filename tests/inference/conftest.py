"""A tiny random Llama with a tokenizer of its own, three random adapters for it and one merged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = [
    "the red fox lives in the forest. a fox is a small animal.",
    "the cat sleeps in the old house at night, over which the sky is dark.",
    "which colour is the sky? the sky is blue, and the house is red.",
]


def build_model(folder: Path, *, hidden: int = 64, seed: int = 0) -> Path:
    """Write a random Llama (head width 32, which vLLM's CPU build accepts) and a byte-level BPE tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        # Wide, so that logits are far apart: with near-ties comparing texts would be a matter of luck.
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_adapter(base: Path, folder: Path, *, seed: int, r: int = 4, **options: Any) -> Path:
    """Write a plain PEFT adapter whose B is random, so that it changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    options = {"target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False} | options
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", **options),
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Prompts of different lengths, so that every batch of two is padded."""
    return [
        "the red fox",
        "a fox is a small animal that lives in the forest and the cat",
        "the cat",
        "which colour is the sky over the old house at night and",
        "cat fox house",
    ]


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    return build_model


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    return build_adapter


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [build_adapter(base, folder / name, seed=seed) for seed, name in enumerate(("first", "second", "third"), 1)]


@pytest.fixture(scope="session")
def merged(base: Path, adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with the first adapter merged into it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("merged")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[0])
    model.merge_and_unload().save_pretrained(folder)
    return folder
