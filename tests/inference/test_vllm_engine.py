"""The vLLM engine says, in float32, what the transformers engine says."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engines import needs_vllm, transformers_answers, vllm_answers

from beamplatform.errors import UserError
from beamplatform.inference import create_engine
from beamplatform.inference.transformers_engine import TransformersEngine
from beamplatform.inference.vllm_engine import LARGEST_RANK, VllmEngine, check_servable, padded_rank

NEW_TOKENS = 12


@needs_vllm
def test_vllm_says_what_transformers_says(
    root: Path,
    base: Path,
    adapters: list[Path],
    merged: Path,
    prompts: list[str],
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """One engine, two adapter slots, three adapters, and the base model before, between and after them."""
    large = make_adapter(base, tmp_path / "large", seed=4, r=16)
    first, second, third = ({"export": ["adapter", str(path)]} for path in adapters)
    base_model: dict[str, Any] = {"export": None}
    stopping = {"export": None, "stop": ["e", "th"]}
    whole = {"export": ["merged", str(merged)]}
    # In one batch: five models, three adapters for two slots.
    mixed = {"exports": [first["export"], None, whole["export"], second["export"], third["export"]]}
    requests = [base_model, first, second, base_model, third, base_model, first, stopping]
    requests += [{**base_model, "beams": 4}, {**first, "beams": 4}, mixed, whole]
    requests = [{**request, "max_new_tokens": NEW_TOKENS} for request in requests]
    refused = [
        {"export": ["adapter", str(large)], "max_new_tokens": NEW_TOKENS},
        {"export": ["adapter", str(tmp_path / "none")], "max_new_tokens": NEW_TOKENS},
        {"export": None, "max_new_tokens": 300},
        {"export": None, "max_new_tokens": NEW_TOKENS, "beams": 2, "stop": ["x"]},
        {"export": None, "max_new_tokens": NEW_TOKENS, "beams": 11},
        {**second, "max_new_tokens": NEW_TOKENS, "ignore": True},
    ]
    job = {
        "base": str(base),
        "prompts": prompts,
        "options": {"dtype": "float32", "batch_size": 2, "max_adapters": 2, "max_lora_rank": 5},
        # An engine that has refused a request still serves the next.
        "requests": [*requests[:2], *refused, *requests[2:]],
    }
    result = vllm_answers(root, tmp_path, job)
    errors, answers = result["answers"][2:8], [*result["answers"][:2], *result["answers"][8:]]

    expected = transformers_answers(base, prompts, requests)
    assert answers == expected
    plain = [found for found, request in zip(expected, requests, strict=True) if "export" in request]
    assert len({tuple(texts) for texts in plain}) == 7, "base, three adapters, stop texts, two beam searches"
    assert result["environment_left_changed"] == []

    rank, missing, long, stop, beams, ignored = errors
    assert rank == f"adapter {large} has rank 16, above this engine's max_lora_rank of 8"
    assert missing == f"no adapter folder at {tmp_path / 'none'}"
    assert "and 300 new ones exceed the model's context of 256" in long
    assert stop.startswith("vLLM's beam search knows no stop texts")
    assert beams.startswith("vLLM searches with at most 10 beams, got 11")
    assert ignored.startswith(f"adapter {adapters[1]} is not in use")


@needs_vllm
def test_ranks_are_rounded_up_to_what_vllm_serves() -> None:
    assert [padded_rank(rank) for rank in (1, 2, 8, 9, 64, 300, 512)] == [1, 8, 8, 16, 64, 320, 512]
    with pytest.raises(UserError, match="max_lora_rank is 513, vLLM serves adapters up to rank 512"):
        padded_rank(513)
    assert padded_rank(LARGEST_RANK) == LARGEST_RANK
    with pytest.raises(UserError, match="adapters of rank 513: vLLM serves at most rank 512"):
        VllmEngine("base", dtype="float32", batch_size=1, max_adapters=1, max_lora_rank=513)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"use_dora": True}, "has use_dora=True, which vLLM cannot serve: export a merged model"),
        ({"rank_pattern": {"q_proj": 2}}, r"has rank_pattern=\{'q_proj': 2\}, which"),
        ({"rank_pattern": {"q_proj": 9}}, "has rank 9, above this engine's max_lora_rank of 8"),
        ({"alpha_pattern": {"q_proj": 2}}, r"has alpha_pattern=\{'q_proj': 2\}, which"),
        ({"alora_invocation_tokens": [1]}, r"has alora_invocation_tokens=\[1\], which"),
        ({"lora_bias": True}, "has lora_bias=True, which"),
        ({"bias": "lora_only"}, "bias='lora_only' is more than low-rank factors"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is more than low-rank factors"),
    ],
)
def test_more_than_plain_lora_is_refused(
    base: Path, make_adapter: Callable[..., Path], tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        check_servable(make_adapter(base, tmp_path / "adapter", seed=1, **options), 8)


def test_vllm_that_is_not_installed_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamplatform.inference.factory.find_spec", lambda name: None)
    options: dict[str, Any] = {"dtype": "float32", "batch_size": 1, "max_adapters": 1, "max_lora_rank": 8}
    with pytest.raises(UserError, match="engine 'vllm' needs vLLM, which is not installed here"):
        create_engine("vllm", "base", **options)
    assert isinstance(create_engine("auto", "base", **options), TransformersEngine)


def test_auto_wants_a_gpu_for_vllm() -> None:
    import torch

    engine = create_engine("auto", "base", dtype="float32", batch_size=1, max_adapters=1, max_lora_rank=8)
    wanted = torch.cuda.is_available() and find_spec("vllm") is not None
    assert isinstance(engine, VllmEngine if wanted else TransformersEngine)
