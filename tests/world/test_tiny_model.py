"""The shipped tiny Llama and its tokenizer: size, faithful text, near chance before fine-tuning; and its recipe."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from beamplatform.world import TASKS, records, tiny_model_path
from beamplatform.world.facts import world
from beamplatform.world.text import PROMPT_HEAD, PROMPT_TAIL, passages

TEXTS = [
    "The quick brown fox can't jump over 12345 dogs (or 6.5 cats)!",
    "  leading and trailing  spaces,\ttabs and\r\nline ends\n\n\n",
    "déjà vu, Straße, 你好, слово, 🙂 and ∑ᵢ xᵢ²",
    "def f(x):\n    return {'a': x[0] + 1}  # code\n",
    "Answer1: red Answer2: a b\n\nAnswer format: answer1/answer2",
    f"{PROMPT_HEAD}Two templates{PROMPT_TAIL}in one {PROMPT_HEAD}text{PROMPT_TAIL}",
    "\x00\x7f control",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_path())


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_path()).eval()


def test_size_and_shape(model: Any) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    assert 1_000_000 <= parameters <= 4_000_000
    files = [path for path in tiny_model_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert model.config.model_type == "llama"
    assert model.config.head_dim in (32, 64), "vLLM's CPU attention refuses smaller heads"


def test_special_tokens(tokenizer: Any, model: Any) -> None:
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert None not in ids and len(set(ids)) == 3
    assert ids == (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer("hello").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trips(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_prompts_are_short(tokenizer: Any) -> None:
    template = tokenizer(PROMPT_HEAD + PROMPT_TAIL, add_special_tokens=False).input_ids
    assert len(template) <= 40
    for task in TASKS:
        for item in records(task, "train"):
            ids = tokenizer(PROMPT_HEAD + item["instruction"] + PROMPT_TAIL + item["output"]).input_ids
            assert len(ids) < 96
            # The response's tokens are the same with and without its prompt, so a response-only loss lines up.
            assert ids[-5:] == tokenizer(item["output"], add_special_tokens=False).input_ids[-5:]


def test_untuned_model_answers_in_form_but_near_chance(model: Any, tokenizer: Any) -> None:
    import torch

    right = chance = total = 0.0
    for task in TASKS:
        items = records(task, "test")[:40]
        prompts = [PROMPT_HEAD + item["instruction"] + PROMPT_TAIL for item in items]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.no_grad():
            output = model.generate(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=12, do_sample=False
            )
        replies = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for item, reply in zip(items, replies, strict=True):
            allowed = item["instruction"].rsplit("Answer format: ", 1)[1].split("/")
            assert re.fullmatch(f"the correct answer is ({'|'.join(allowed)})", reply), "the end of text is not learnt"
            right += reply.endswith(item["answer"])
            chance += 1 / len(allowed)
            total += 1
    # Three standard errors of a fair guess around chance.
    assert abs(right - chance) / total < 3 * (0.25 / total) ** 0.5


def test_pretraining_never_shows_a_test_question() -> None:
    tests = {item["instruction"] for task in TASKS for item in records(task, "test")}
    drills = itertools.islice(passages(world(), 1, facts=0, lookups=0, quizzes=0, drills=1), 5000)
    for drill in drills:
        prompt, answer = (piece for piece, _ in drill.parts)
        assert prompt.startswith(PROMPT_HEAD) and prompt.endswith(PROMPT_TAIL)
        assert answer.startswith("the correct answer is ")
        assert prompt[len(PROMPT_HEAD) : -len(PROMPT_TAIL)] not in tests


def test_pretraining_runs_and_writes_a_loadable_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from beamplatform.world.pretrain import Recipe, pretrain

    recipe = Recipe(steps=12, layers=1, hidden_size=64, heads=2, intermediate_size=64, warmup=2, batch_tokens=512)
    result = pretrain(recipe, tmp_path)
    assert result["loss"] < 7.4
    assert json.loads((tmp_path / "pretraining.json").read_text())["recipe"]["steps"] == 12
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("The", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, 2, model.config.vocab_size)


def test_shipped_model_was_made_by_the_default_recipe() -> None:
    from dataclasses import asdict

    from beamplatform.world.pretrain import Recipe

    made = json.loads((tiny_model_path() / "pretraining.json").read_text())
    assert made["recipe"] == asdict(Recipe())
