"""What is wrong with a base model's files is told before anything starts, and again where the model is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SIZES, mixtral, saved

from beamplatform.errors import UserError
from beamplatform.models.check import check_model
from beamplatform.models.loading import load_base, resolve_path
from beamplatform.models.shapes import model_shapes

Change = Callable[[dict[str, Any]], Any]
LAYER = "model.layers.3.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "beamlora"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The shipped model, to damage."""
    return Path(shutil.copytree(resolve_path("tiny"), tmp_path / "model"))


def refusal(path: Path, *, trains: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        check_model(str(path), "content", trains=trains)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def loading(path: Path) -> str:
    """What a worker says that loads the model without a check before."""
    with pytest.raises(UserError) as caught:
        load_base(str(path), torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Change, name: str = "model.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def configure(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_a_whole_model_passes_and_is_looked_at_once_for_its_content(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_model("tiny", "a", trains=True)
    check_model(str(copy), "b", trains=True)
    rewrite(copy, lambda tensors: tensors.pop(LAYER))
    check_model(str(copy), "b", trains=True)
    refusal(copy)


@pytest.mark.parametrize("kind", ["gpt2", "tied", "sharded", "mixtral", "without head"])
def test_models_of_other_kinds_pass_and_each_lost_tensor_is_named(kind: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    options, lost = {}, "model.layers.1.mlp.down_proj.weight"
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=kind in ("tied", "without head")))
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=1472, n_embd=32, n_layer=1, n_head=2, eos_token_id=2))
        lost = "transformer.h.0.mlp.c_fc.bias"
    elif kind == "mixtral":
        lost = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    elif kind == "sharded":
        options = {"max_shard_size": "20KB"}
    elif kind == "without head":
        model, lost = model.model, "layers.1.mlp.down_proj.weight"
    folder = mixtral(tmp_path / "model") if kind == "mixtral" else saved(model, tmp_path / "model", **options)
    if kind == "without head":  # a base model's own file has no prefix
        configure(folder, architectures=["LlamaForCausalLM"])
    check_model(str(folder), "whole", trains=True)
    file = "model.safetensors"
    if kind == "sharded":
        file = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][lost]
    rewrite(folder, lambda tensors: tensors.pop(lost), file)
    assert f"no {lost.removeprefix('model.')}" in refusal(folder).replace("no model.", "no ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LAYER), f"lacks weights that its config.json asks for: no {LAYER}; "),
        (lambda t: [t.pop(n) for n in list(t) if ".3." in n], "no model.layers.3.input_layernorm.weight and 8 more"),
        (lambda t: t.update({LAYER: torch.ones(4, 4)}), f"has {LAYER} of shape [4, 4], where its config.json"),
        (lambda t: t.update({LAYER.replace(".3.", ".9."): torch.ones(1)}), "has weights of more layers than its"),
        (lambda t: t[LAYER][0].fill_(float("nan")), f"the tensor {LAYER} has values that are NaN or infinite"),
        (lambda t: t[LAYER][-1, -1:].fill_(float("inf")), f"the tensor {LAYER} has values that are NaN or infinite"),
        (lambda t: t.update({LAYER: t[LAYER].bfloat16() * torch.inf}), f"the tensor {LAYER} has values"),
        (lambda t: t.update({LAYER: t[LAYER].half() * torch.nan}), f"the tensor {LAYER} has values"),
        (lambda t: t.update({LAYER: t[LAYER].double() * -torch.inf}), f"the tensor {LAYER} has values"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_models(copy: Path, change: Change, message: str) -> None:
    rewrite(copy, change)
    assert message in refusal(copy)
    if "more layers" not in message:  # those are only left out
        assert LAYER in (said := loading(copy)) or "layers.3" in said


def test_experts_of_other_shapes(tmp_path: Path) -> None:
    folder, name = mixtral(tmp_path / "model"), "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(3, 3)}))
    assert f"has {name} of shape [3, 3], and the other experts of [32, 48]" in refusal(folder)


def test_largest_finite_values_are_finite(copy: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        largest = torch.finfo(dtype)
        rewrite(copy, lambda t, dtype=dtype, s=largest: t.update({LAYER: torch.full((256, 128), s.max, dtype=dtype)}))
        check_model(str(copy), f"max {dtype}")
        rewrite(copy, lambda t, dtype=dtype, s=largest: t.update({LAYER: torch.full((256, 128), s.min, dtype=dtype)}))
        check_model(str(copy), f"min {dtype}")


def test_files_that_are_not_there_or_cut_off(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"{weights}: not a readable safetensors file" in refusal(copy)
    assert str(copy) in loading(copy)
    weights.write_bytes(b"")
    assert f"{weights}: not a readable safetensors file" in refusal(copy)
    weights.write_bytes(struct.pack("<Q", 2**40) + whole[8:])
    assert f"{weights}: not a readable safetensors file" in refusal(copy)
    weights.unlink()
    assert f"{copy}: no model.safetensors" in refusal(copy)
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    assert "only pytorch_model.bin; pickled weights can run code" in refusal(copy)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {LAYER: "model-1.safetensors"}}))
    assert f"{copy}: no model-1.safetensors" in refusal(copy)
    for wrong in ({}, {"weight_map": []}, {"weight_map": {LAYER: 1}}):
        index.write_text(json.dumps(wrong))
        assert f"{index}: weight_map must name the file of each tensor" in refusal(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized (quantization_config in its"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.A"}}, "needs code of its own (auto_map)"),
        ({"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "mine.A"}}, "needs code of its own (auto_map)"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "org/code--mine.A"}}, "needs code of its own (auto_map)"),
        ({"model_type": "t5"}, "is an encoder-decoder (t5), not a causal language model"),
        ({"model_type": "vit"}, "is not a causal language model"),
        ({"model_type": ...}, "cannot read a model configuration"),
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 0}, "cannot read a model configuration"),
        ({"hidden_act": "none"}, "describes no model: KeyError: 'none'"),
        ({"num_hidden_layers": 2}, "has weights of more layers than its config.json asks for"),
        ({"num_hidden_layers": 7}, "no model.layers.6.input_layernorm.weight and 8 more"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_for_training(
    copy: Path, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prompt: str = "") -> str:
        raise AssertionError(f"somebody is asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)
    (copy / "mine.py").write_text("raise SystemExit('this ran')")
    configure(copy, **values)
    assert message in refusal(copy)
    if "layers" not in message or "no model" in message:
        loading(copy)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bart", "big_bird", "megatron-bert", "xlm", "xlnet"])
def test_models_that_see_what_they_are_to_predict(kind: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    assert "not a causal language model" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["gpt_neox", "opt", "bloom", "qwen2", "gemma3_text"])
def test_causal_models_are_told_from_them(kind: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    assert refusal(tmp_path) == f"{tmp_path}: no model.safetensors", "all but the weights is in order"


def test_code_beside_a_model_that_needs_none_is_not_run(copy: Path) -> None:
    (copy / "mine.py").write_text("raise SystemExit('this ran')")
    configure(copy, auto_map={"AutoConfig": "mine.A", "AutoModelForCausalLM": "mine.A"})
    configure(copy, "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.A", "mine.A"]})
    check_model(str(copy), "content", trains=True)
    load_base(str(copy), torch.float32)


def test_tokenizers_that_are_not_the_models(copy: Path) -> None:
    configure(copy, "tokenizer_config.json", eos_token=None)
    assert "names no end-of-sequence token" in refusal(copy)
    check_model(str(copy), "content", trains=False)  # asked, the generation config may name one
    configure(copy, "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.A", None]})
    assert "cannot load a tokenizer" in (said := refusal(copy)) and "needs code of its own" in said
    (copy / "tokenizer.json").write_text("{")
    assert "cannot load a tokenizer" in refusal(copy)


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = saved(LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 1000})), tmp_path / "model")
    assert "has tokens up to number 1441, and the model 1000 embeddings" in refusal(folder)


def test_an_adapters_folder_is_not_a_model(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json); give the folder of a model" in refusal(copy)
    loading(copy)


def test_examples_fit_the_models_positions() -> None:
    model = model_shapes("tiny", "tiny")
    model.check_length(2048)
    with pytest.raises(UserError, match=r"^data.max_length: 2049 tokens are more than the 2048 positions .* most 2048"):
        model.check_length(2049)


def test_positions_of_gpt2_have_another_name(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_positions=64, n_embd=32, n_layer=1, n_head=2, vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        model_shapes(str(tmp_path), "gpt2").check_length(65)


def test_a_large_file_is_read_once(cache: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beamplatform.io import disk_cache
    from beamplatform.models import weight_files

    monkeypatch.setattr(disk_cache, "LARGE", 0)
    looked: list[str] = []
    look = weight_files._first_not_finite
    monkeypatch.setattr(weight_files, "_first_not_finite", lambda path: (looked.append(path.name), look(path))[1])
    for content in ("first", "second"):
        check_model(str(copy), content)
    assert looked == ["model.safetensors"]
    rewrite(copy, lambda tensors: tensors[LAYER].fill_(torch.inf))
    assert LAYER in refusal(copy) and len(looked) == 2


def test_files_nested_too_deep(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text("[" * 100_000)
    assert "not readable as JSON" in refusal(copy)


def test_two_models_in_one_folder(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {LAYER: "model-00001-of-00002.safetensors"}}))
    assert "holds model.safetensors and also model.safetensors.index.json" in refusal(copy)
    index.write_text(json.dumps({"weight_map": {LAYER: "model.safetensors"}}))
    check_model(str(copy), "content", trains=True)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool])
def test_weights_that_are_integers(copy: Path, kind: torch.dtype) -> None:
    rewrite(copy, lambda tensors: tensors.update({LAYER: tensors[LAYER].to(kind)}))
    assert f"the tensor {LAYER} holds no floating-point numbers" in refusal(copy)


def test_an_empty_quantization(copy: Path) -> None:
    configure(copy, quantization_config={})
    assert "is quantized" in refusal(copy)


def test_tokens_that_a_text_may_hold_have_embeddings(copy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<special {number}>" for number in range(100)], special_tokens=True)
    tokenizer.save_pretrained(copy)
    check_model(str(copy), "before", trains=True)  # no text becomes one of these
    tokenizer.add_tokens(["a new word"])
    tokenizer.save_pretrained(copy)
    assert "has tokens up to number" in refusal(copy)
