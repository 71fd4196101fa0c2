"""The transformers engine against transformers and PEFT used by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beamplatform.data.prompts import alpaca_prompt
from beamplatform.data.records import Record
from beamplatform.errors import UserError
from beamplatform.inference import Engine, Export, create_engine
from beamplatform.tasks import evaluate, get_task

NEW_TOKENS = 12


def engine_for(base: Path, *, batch_size: int = 2, max_adapters: int = 3) -> Engine:
    return create_engine(
        "transformers",
        str(base),
        dtype="float32",
        batch_size=batch_size,
        max_adapters=max_adapters,
        max_lora_rank=8,
    )


def adapter(path: Path) -> Export:
    return Export("adapter", str(path))


def by_hand(base: Path, adapter: Path | None, prompts: Sequence[str], beams: int = 1) -> list[str]:
    """One prompt at a time, unpadded, with a model loaded for this adapter alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False, num_beams=beams, max_new_tokens=NEW_TOKENS)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


@pytest.fixture
def engine(base: Path) -> Iterator[Engine]:
    engine = engine_for(base)
    yield engine
    engine.close()


def test_adapters_and_base_give_the_text_of_peft_by_hand(
    engine: Engine, base: Path, adapters: list[Path], prompts: list[str]
) -> None:
    expected = {path: by_hand(base, path, prompts) for path in (None, *adapters[:2])}
    assert len({tuple(texts) for texts in expected.values()}) == 3
    for path in (None, adapters[0], adapters[1], None, adapters[0]):
        export = adapter(path) if path else None
        assert engine.generate(prompts, export=export, max_new_tokens=NEW_TOKENS) == expected[path]


def test_beam_search_is_that_of_transformers(
    engine: Engine, base: Path, adapters: list[Path], prompts: list[str]
) -> None:
    expected = by_hand(base, adapters[0], prompts, beams=4)
    assert expected != by_hand(base, adapters[0], prompts)
    found = engine.generate(prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS, beams=4)
    assert found == expected


def test_merged_models_say_what_their_adapters_say(
    engine: Engine, base: Path, adapters: list[Path], merged: Path, prompts: list[str]
) -> None:
    # The base model's own folder is the merged model of an adapter that changes nothing.
    exports = (Export("merged", str(merged)), Export("merged", str(base)), adapter(adapters[0]), None)
    whole, unchanged, adapted, base_texts = (
        engine.generate(prompts, export=export, max_new_tokens=NEW_TOKENS) for export in exports
    )
    assert whole == adapted
    assert unchanged == base_texts
    assert base_texts != whole


def test_more_adapters_than_fit_take_turns(base: Path, adapters: list[Path], prompts: list[str]) -> None:
    roomy, narrow = engine_for(base), engine_for(base, max_adapters=1)
    for path in (adapters[0], adapters[1], adapters[2], adapters[0]):
        texts = [e.generate(prompts, export=adapter(path), max_new_tokens=NEW_TOKENS) for e in (roomy, narrow)]
        assert texts[0] == texts[1]
    assert list(narrow._adapted.peft_config) == list(narrow._adapters)  # type: ignore[attr-defined]


def test_adapter_written_anew_is_loaded_anew(
    engine: Engine, adapters: list[Path], prompts: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "adapter"
    texts = []
    for source in adapters[:2]:
        shutil.copytree(source, path, dirs_exist_ok=True, copy_function=shutil.copy)
        texts.append(engine.generate(prompts, export=adapter(path), max_new_tokens=NEW_TOKENS))
    expected = [engine.generate(prompts, export=adapter(p), max_new_tokens=NEW_TOKENS) for p in adapters[:2]]
    assert texts == expected


def test_generation_config_of_the_model_changes_nothing(base: Path, prompts: list[str], tmp_path: Path) -> None:
    """Chat models ship with sampling switched on and a repetition penalty."""
    import json

    chat = tmp_path / "chat"
    shutil.copytree(base, chat)
    (chat / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "eos_token_id": [2]})
    )
    texts = [engine_for(folder).generate(prompts, export=None, max_new_tokens=NEW_TOKENS) for folder in (base, chat)]
    assert texts[0] == texts[1]


def test_completion_ends_at_any_end_of_sequence_token(base: Path, prompts: list[str], tmp_path: Path) -> None:
    import json

    from transformers import AutoTokenizer

    engine = engine_for(base)
    (full,) = engine.generate(prompts[:1], export=None, max_new_tokens=NEW_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = engine._base  # type: ignore[attr-defined]
    inputs = tokenizer(prompts[0], return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0].tolist()
    fourth = ids[inputs["input_ids"].shape[1] + 3]

    ending = tmp_path / "ending"
    shutil.copytree(base, ending)
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, fourth]}))
    (short,) = engine_for(ending).generate(prompts[:1], export=None, max_new_tokens=NEW_TOKENS)
    assert short == tokenizer.decode(ids[inputs["input_ids"].shape[1] :][:3])
    assert len(short) < len(full)


def test_completion_ends_before_the_first_stop_text(engine: Engine, prompts: list[str]) -> None:
    full = engine.generate(prompts, export=None, max_new_tokens=NEW_TOKENS)
    stop = [full[0][4:6], full[0][2:4]]
    found = engine.generate(prompts, export=None, max_new_tokens=NEW_TOKENS, stop=stop)
    assert found == [min((text.partition(s)[0] for s in stop), key=len) for text in full]
    assert len(found[0]) <= 2


def test_prompt_beyond_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens and 12 new ones exceed .* of 256; it begins 'zqzq"):
        engine.generate(["the cat", "zq" * 130], export=None, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("beams", [1, 2])
def test_evaluation_does_not_depend_on_the_batch_size(base: Path, adapters: list[Path], beams: int) -> None:
    records = {
        "boolq": [Record(f"is the {x} red?", "yes", "true") for x in ("fox", "cat in the house", "sky")],
        "piqa": [Record("which one?", "solution1", "solution1")],
    }
    tasks = [get_task(name) for name in records]
    found = [
        evaluate(engine_for(base, batch_size=n), adapter(adapters[0]), tasks, records, beams=beams) for n in (1, 3)
    ]
    assert found[0] == found[1]
    assert [p.prompt for p in found[0].predictions["boolq"]] == [
        alpaca_prompt(record.instruction) for record in records["boolq"]
    ]
    assert all(p.completion for p in found[0].predictions["boolq"])


def test_closed_engine_can_be_used_again(engine: Engine, prompts: list[str], adapters: list[Path]) -> None:
    first = engine.generate(prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS)
    engine.close()
    assert engine.generate(prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS) == first


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "tgi"}, "unknown engine 'tgi': allowed are auto, transformers, vllm"),
        ({"dtype": "int8"}, "unknown dtype 'int8': allowed are float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_adapters": 0}, "max_adapters must be at least 1, got 0"),
        ({"max_lora_rank": -1}, "max_lora_rank must be at least 1, got -1"),
    ],
)
def test_engine_options_are_checked(change: dict[str, Any], expected: str) -> None:
    options: dict[str, Any] = {
        "kind": "transformers",
        "base_model": "x",
        "dtype": "float32",
        "batch_size": 1,
        "max_adapters": 1,
        "max_lora_rank": 8,
    }
    with pytest.raises(UserError, match=expected):
        create_engine(**{**options, **change})


def test_missing_base_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load a tokenizer from"):
        engine_for(tmp_path / "nothing").generate(["a"], export=None, max_new_tokens=1)


def test_export_is_checked_before_it_is_loaded(
    engine: Engine, make_model: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_adapter(make_model(tmp_path / "wide", hidden=96), tmp_path / "adapter", seed=1)
    for kind in ("adapter", "merged"):
        with pytest.raises(UserError, match=f"no {kind} folder at"):
            engine.generate(["a"], export=Export(kind, str(tmp_path / "none")), max_new_tokens=1)
    with pytest.raises(UserError, match="was not made for the base model"):
        engine.generate(["a"], export=adapter(other), max_new_tokens=1)
