"""Both engines give the same greedy text: the shipped model, and an adapter on it, on 200 of the world's questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engines import needs_vllm, transformers_answers, vllm_answers

from beamplatform.data.records import load_records
from beamplatform.tasks import get_task
from beamplatform.world import tiny_model_path

NEAR_TIE = 1e-4
"""Logits closer than this are decided by the order of a sum in float32."""


@needs_vllm
def test_greedy_text_agrees_on_99_percent_of_200_prompts(
    root: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    tasks = ["boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa"]
    prompts = [
        get_task(task).prompt(record) for task in tasks for record in load_records(task, "test", "embedded")[:25]
    ]
    base = tiny_model_path()
    adapter = make_adapter(base, tmp_path / "adapter", seed=1, r=8, target_modules=["q_proj", "v_proj", "up_proj"])
    exports = [None, ["adapter", str(adapter)]]
    requests = [{"export": export, "max_new_tokens": 32} for export in exports]
    options = {"dtype": "float32", "batch_size": 64, "max_adapters": 2, "max_lora_rank": 8}
    job = {"base": str(base), "prompts": prompts, "options": options, "requests": requests}
    served = vllm_answers(root, tmp_path, job)["answers"]
    expected = transformers_answers(base, prompts, requests, batch_size=64)
    assert expected[0] != expected[1]
    for export, found, wanted in zip(exports, served, expected, strict=True):
        differing = [number for number in range(200) if found[number] != wanted[number]]
        gaps = [gap(base, export, prompts[n], found[n], wanted[n]) for n in differing]
        for number, distance in zip(differing, gaps, strict=True):
            print(f"{export}, prompt {number}: the two likeliest tokens are {distance:.1e} apart")
            print(f"  vllm:         {found[number]!r}\n  transformers: {wanted[number]!r}")
        print(f"{export}: {200 - len(differing)} of 200 the same")
        assert len(differing) <= 2
        assert all(distance < NEAR_TIE for distance in gaps)


def gap(base: Path, export: Any, prompt: str, one: str, other: str) -> float:
    """How far apart the two texts' next tokens are in the model's logits, where the texts part."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    if export is not None:
        model = PeftModel.from_pretrained(model, export[1]).eval()

    def ids(text: str) -> list[int]:
        end = [tokenizer.eos_token_id]
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) + end

    first, second = ids(one), ids(other)
    same = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    context: Sequence[int] = list(tokenizer(prompt)["input_ids"]) + first[:same]
    with torch.no_grad():
        logits = model(torch.tensor([context])).logits[0, -1]
    return abs(float(logits[first[same]] - logits[second[same]]))


def test_the_gap_is_that_of_the_two_next_tokens() -> None:
    prompt = get_task("boolq").prompt(load_records("boolq", "test", "embedded")[0])
    distance = gap(tiny_model_path(), None, prompt, "true", "false")
    assert distance == pytest.approx(gap(tiny_model_path(), None, prompt, "false", "true"))
    assert distance > NEAR_TIE
