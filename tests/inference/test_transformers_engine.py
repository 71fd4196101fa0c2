"""The transformers engine against transformers and PEFT used by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import complete, complete_all, evaluate

from beamplatform.errors import UserError
from beamplatform.evaluation.evaluate import Settings
from beamplatform.inference import Engine, Export, Generation, Request, create_engine
from beamplatform.inference.applied_check import ExportError, changes_weights
from beamplatform.inference.transformers_engine import TransformersEngine
from beamplatform.tasks import get_task
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record

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
        assert complete(engine, prompts, export=export, max_new_tokens=NEW_TOKENS) == expected[path]


def test_beam_search_is_that_of_transformers(
    engine: Engine, base: Path, adapters: list[Path], prompts: list[str]
) -> None:
    expected = by_hand(base, adapters[0], prompts, beams=4)
    assert expected != by_hand(base, adapters[0], prompts)
    found = complete(engine, prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS, beams=4)
    assert found == expected


def test_merged_models_say_what_their_adapters_say(
    engine: Engine, base: Path, adapters: list[Path], merged: Path, prompts: list[str]
) -> None:
    # The base model's own folder is the merged model of an adapter that changes nothing.
    exports = (Export("merged", str(merged)), Export("merged", str(base)), adapter(adapters[0]), None)
    whole, unchanged, adapted, base_texts = (
        complete(engine, prompts, export=export, max_new_tokens=NEW_TOKENS) for export in exports
    )
    assert whole == adapted
    assert unchanged == base_texts
    assert base_texts != whole


def test_several_models_asked_at_once_answer_as_each_alone(
    engine: Engine, adapters: list[Path], merged: Path, prompts: list[str]
) -> None:
    exports = [adapter(adapters[0]), None, Export("merged", str(merged)), *map(adapter, adapters[1:])]
    together = complete_all(engine, prompts, exports=exports, max_new_tokens=NEW_TOKENS)
    assert together == [complete(engine, prompts, export=e, max_new_tokens=NEW_TOKENS) for e in exports]
    assert len({tuple(found) for found in together}) == 4


def test_draws_are_repeatable_and_differ_by_seed(base: Path, adapters: list[Path], prompts: list[str]) -> None:
    def drawn(seed: int) -> list[list[str]]:
        how = Generation(NEW_TOKENS, samples=3, temperature=1.0, seed=seed)
        requests = [Request(prompt, adapter(adapters[0])) for prompt in prompts]
        found = dict(engine_for(base).generate(requests, how))
        return [found[index] for index in range(len(prompts))]

    first = drawn(0)
    assert {len(samples) for samples in first} == {3} and len({*first[0]}) > 1
    assert first == drawn(0) != drawn(1)


def test_an_adapter_that_is_not_applied_is_an_error(
    base: Path, adapters: list[Path], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_out(engine: TransformersEngine, name: str) -> None:
        engine._adapted.base_model.disable_adapter_layers()
        engine._adapters[name] = None

    monkeypatch.setattr(TransformersEngine, "_switch_on", leave_out)
    engine = engine_for(base)
    for _ in range(2):  # a second try is not taken for granted
        with pytest.raises(ExportError, match=f"adapter {adapters[0]} is not in use") as caught:
            complete(engine, prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS)
        assert caught.value.export == adapter(adapters[0])


def test_an_adapter_that_changes_nothing_may_say_what_the_base_says(
    engine: Engine, base: Path, make_adapter: Callable[..., Path], prompts: list[str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_adapter(base, tmp_path / "zero", seed=1)
    assert changes_weights(folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor * (0 if "lora_B" in name else 1) for name, tensor in load_file(file).items()}, file)
    assert not changes_weights(folder)
    zero, untouched = (complete(engine, prompts, export=e, max_new_tokens=NEW_TOKENS) for e in (adapter(folder), None))
    assert zero == untouched


def test_more_adapters_than_fit_take_turns(base: Path, adapters: list[Path], prompts: list[str]) -> None:
    roomy, narrow = engine_for(base), engine_for(base, max_adapters=1)
    for path in (adapters[0], adapters[1], adapters[2], adapters[0]):
        texts = [complete(e, prompts, export=adapter(path), max_new_tokens=NEW_TOKENS) for e in (roomy, narrow)]
        assert texts[0] == texts[1]
    assert list(narrow._adapted.peft_config) == list(narrow._adapters)  # type: ignore[attr-defined]


def test_adapter_written_anew_is_loaded_anew(
    engine: Engine, adapters: list[Path], prompts: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "adapter"
    texts = []
    for source in adapters[:2]:
        shutil.copytree(source, path, dirs_exist_ok=True, copy_function=shutil.copy)
        texts.append(complete(engine, prompts, export=adapter(path), max_new_tokens=NEW_TOKENS))
    expected = [complete(engine, prompts, export=adapter(p), max_new_tokens=NEW_TOKENS) for p in adapters[:2]]
    assert texts == expected


def test_generation_config_of_the_model_changes_nothing(base: Path, prompts: list[str], tmp_path: Path) -> None:
    """Chat models ship with sampling switched on and a repetition penalty."""
    import json

    chat = tmp_path / "chat"
    shutil.copytree(base, chat)
    (chat / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "eos_token_id": [2]})
    )
    texts = [complete(engine_for(folder), prompts, export=None, max_new_tokens=NEW_TOKENS) for folder in (base, chat)]
    assert texts[0] == texts[1]


def test_completion_ends_at_any_end_of_sequence_token(base: Path, prompts: list[str], tmp_path: Path) -> None:
    import json

    from transformers import AutoTokenizer

    engine = engine_for(base)
    (full,) = complete(engine, prompts[:1], export=None, max_new_tokens=NEW_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = engine._base  # type: ignore[attr-defined]
    inputs = tokenizer(prompts[0], return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0].tolist()
    fourth = ids[inputs["input_ids"].shape[1] + 3]

    ending = tmp_path / "ending"
    shutil.copytree(base, ending)
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, fourth]}))
    (short,) = complete(engine_for(ending), prompts[:1], export=None, max_new_tokens=NEW_TOKENS)
    assert short == tokenizer.decode(ids[inputs["input_ids"].shape[1] :][:3])
    assert len(short) < len(full)


def test_completion_ends_before_the_first_stop_text(engine: Engine, prompts: list[str]) -> None:
    full = complete(engine, prompts, export=None, max_new_tokens=NEW_TOKENS)
    stop = [full[0][4:6], full[0][2:4]]
    found = complete(engine, prompts, export=None, max_new_tokens=NEW_TOKENS, stop=stop)
    assert found == [min((text.partition(s)[0] for s in stop), key=len) for text in full]
    assert len(found[0]) <= 2


def test_prompt_beyond_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens and 12 new ones exceed .* of 256; it begins 'zqzq"):
        complete(engine, ["the cat", "zq" * 130], export=None, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("beams", [1, 2])
def test_evaluation_does_not_depend_on_the_batch_size(base: Path, adapters: list[Path], beams: int) -> None:
    records = {
        "boolq": [Record(f"is the {x} red?", "yes", "true") for x in ("fox", "cat in the house", "sky")],
        "piqa": [Record("which one?", "solution1", "solution1")],
    }
    tasks = [get_task(name) for name in records]
    found = [
        evaluate(engine_for(base, batch_size=n), adapter(adapters[0]), tasks, records, settings=Settings(beams=beams))
        for n in (1, 3)
    ]
    assert found[0] == found[1]
    assert [p.prompt for p in found[0].predictions["boolq"]] == [
        alpaca_prompt(record.instruction) for record in records["boolq"]
    ]
    assert all(p.completion for p in found[0].predictions["boolq"])


def test_closed_engine_can_be_used_again(engine: Engine, prompts: list[str], adapters: list[Path]) -> None:
    first = complete(engine, prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS)
    engine.close()
    assert complete(engine, prompts, export=adapter(adapters[0]), max_new_tokens=NEW_TOKENS) == first


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
    with pytest.raises(UserError, match=r"model\.path: no model folder at"):
        complete(engine_for(tmp_path / "nothing"), ["a"], export=None, max_new_tokens=1)


def test_export_is_checked_before_it_is_loaded(
    engine: Engine, make_model: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_adapter(make_model(tmp_path / "wide", hidden=96), tmp_path / "adapter", seed=1)
    for kind in ("adapter", "merged"):
        with pytest.raises(UserError, match=f"no {kind} folder at"):
            complete(engine, ["a"], export=Export(kind, str(tmp_path / "none")), max_new_tokens=1)
    with pytest.raises(UserError, match="was not made for the base model"):
        complete(engine, ["a"], export=adapter(other), max_new_tokens=1)
