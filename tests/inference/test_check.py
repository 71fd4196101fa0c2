"""Exports that fit, and every reason for which one does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamplatform.errors import UserError
from beamplatform.inference import Export, check_export


def refusal(base: Path | str, kind: Any, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_export(str(base), Export(kind, str(path)))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def copy(adapters: list[Path], tmp_path: Path) -> Path:
    """An adapter to damage."""
    return Path(shutil.copytree(adapters[0], tmp_path / "adapter"))


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / name)), folder / name)


def test_fitting_exports_pass_without_loading_torch(root: Path, base: Path, adapters: list[Path], merged: Path) -> None:
    program = (
        "import sys; from beamplatform.inference import Export, check_export\n"
        "check_export(sys.argv[1], Export('adapter', sys.argv[2]))\n"
        "check_export(sys.argv[1], Export('merged', sys.argv[3]))\n"
        "assert not {'torch', 'transformers', 'peft', 'vllm'} & set(sys.modules), 'a slow import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, base, adapters[0], merged],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'platform'}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr


def test_sharded_base_model_is_read_whole(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    check_export(str(tmp_path), Export("adapter", str(adapters[0])))
    check_export(str(base), Export("merged", str(tmp_path)))
    shard = max(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    assert refusal(tmp_path, "adapter", adapters[0]) == f"{tmp_path}: no {shard.name}"


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's advice on tied and transposed layers
def test_layers_that_headers_do_not_show_are_found_in_the_architecture(
    make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """GPT-2 stores its linear weights transposed and ties its head to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2)).save_pretrained(base)
    targets = ["c_attn", "c_fc", "wte", "lm_head"]
    adapter = make_adapter(base, tmp_path / "adapter", seed=0, target_modules=targets, fan_in_fan_out=True)
    rewrite(  # PEFT saves the whole embedding and head beside their factors
        adapter,
        "adapter_model.safetensors",
        lambda tensors: {key: value for key, value in tensors.items() if "base_layer" not in key},
    )
    check_export(str(base), Export("adapter", str(adapter)))


def test_base_model_without_safetensors_is_built_from_its_config(
    base: Path, adapters: list[Path], merged: Path, tmp_path: Path
) -> None:
    shutil.copy(base / "config.json", tmp_path)
    check_export(str(tmp_path), Export("adapter", str(adapters[0])))
    check_export(str(tmp_path), Export("merged", str(merged)))


def test_adapter_of_another_width(
    base: Path, make_model: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    wide = make_model(tmp_path / "wide", hidden=96)
    adapter = make_adapter(wide, tmp_path / "adapter", seed=1)
    assert refusal(base, "adapter", adapter) == (
        f"adapter {adapter} was not made for the base model {base}: "
        "model.layers.0.mlp.down_proj has a weight of shape [64, 128], the adapter needs [96, 192]"
    )
    message = refusal(base, "merged", wide)
    assert f"merged model {wide} was not made from the base model {base}: " in message
    assert "lm_head.weight has shape [320, 96], in the base model [320, 64]" in message


def test_adapter_for_modules_the_base_model_lacks(base: Path, copy: Path) -> None:
    rewrite(
        copy,
        "adapter_model.safetensors",
        lambda tensors: {key.replace("layers.1.", "layers.7."): value for key, value in tensors.items()},
    )
    assert refusal(base, "adapter", copy).endswith(f"base model {base}: it has no module model.layers.7.mlp.down_proj")


def test_adapter_folder_without_its_parts(base: Path, copy: Path, tmp_path: Path) -> None:
    assert refusal(base, "adapter", tmp_path / "none") == f"no adapter folder at {tmp_path / 'none'}"
    weights = copy / "adapter_model.safetensors"
    weights.rename(copy / "kept")
    assert refusal(base, "adapter", copy) == f"{copy}: no adapter_model.safetensors"
    (copy / "adapter_model.bin").write_bytes(b"pickle")
    assert "only adapter_model.bin; pickled weights can run code and are not loaded" in refusal(base, "adapter", copy)
    (copy / "kept").rename(weights)
    check_export(str(base), Export("adapter", str(copy)))
    config = copy / "adapter_config.json"
    config.write_text("{")
    assert "not readable as JSON" in refusal(base, "adapter", copy)
    config.write_text("[]")
    assert refusal(base, "adapter", copy) == f"{config}: expected a JSON object"
    config.unlink()
    assert f"{config} is missing: an adapter's folder holds" in refusal(base, "adapter", copy)


def test_adapter_that_is_not_lora(base: Path, copy: Path) -> None:
    config = copy / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "IA3"}))
    assert refusal(base, "adapter", copy) == f"{config}: peft_type must be LORA, found 'IA3'"


def test_adapter_with_damaged_weights(base: Path, copy: Path) -> None:
    import torch

    weights = copy / "adapter_model.safetensors"
    whole = weights.read_bytes()
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"

    rewrite(
        copy,
        weights.name,
        lambda tensors: {k: v for k, v in tensors.items() if k != f"{prefix}.lora_B.weight"},
    )
    assert refusal(base, "adapter", copy) == f"{weights}: model.layers.0.self_attn.q_proj lacks lora_B"

    weights.write_bytes(whole)
    rewrite(copy, weights.name, lambda tensors: {**tensors, f"{prefix}.lora_B.weight": torch.zeros(64, 3)})
    assert "q_proj has lora_A [4, 64] and lora_B [64, 3], expected [r, inputs]" in refusal(base, "adapter", copy)

    rewrite(copy, weights.name, lambda tensors: {"other": torch.zeros(1)})
    assert refusal(base, "adapter", copy) == f"{weights}: holds no LoRA factors"

    weights.write_bytes(whole[:100])
    assert f"{weights}: not a readable safetensors file (" in refusal(base, "adapter", copy)


def test_merged_folder_without_its_parts(base: Path, merged: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(merged, tmp_path / "merged"))
    (folder / "model.safetensors").rename(folder / "kept")
    assert refusal(base, "merged", folder) == f"{folder}: no model.safetensors"
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "only pytorch_model.bin; pickled weights" in refusal(base, "merged", folder)
    (folder / "kept").rename(folder / "model.safetensors")
    rewrite(folder, "model.safetensors", lambda tensors: {"x." + key: value for key, value in tensors.items()})
    assert "they share no tensor, the first here is x." in refusal(base, "merged", folder)
    (folder / "config.json").unlink()
    assert "config.json is missing: a merged model's folder holds" in refusal(base, "merged", folder)


def test_base_model_that_cannot_be_read(adapters: list[Path], tmp_path: Path) -> None:
    message = refusal(tmp_path, "adapter", adapters[0])
    assert f"cannot read a model configuration from {tmp_path}: " in message
