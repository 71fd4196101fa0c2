"""Small models of other kinds, with the shipped tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from beamplatform.models.loading import resolve_path

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 1472, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """Write a model beside the shipped tokenizer; `options` are those of save_pretrained."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(resolve_path("tiny")) / name, folder)
    model.save_pretrained(folder, **options)
    return folder


def mixtral(folder: Path) -> Path:
    """A mixture of two experts, which transformers keeps fused."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return saved(MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)), folder)
