"""Adapters that are not what their configuration says, and adapters with more than the engines apply."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beamplatform.errors import UserError
from beamplatform.inference import Export, check_export

Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def copy(adapters: list[Path], tmp_path: Path) -> Path:
    """An adapter of rank 4 for q_proj, v_proj and down_proj, to damage."""
    return Path(shutil.copytree(adapters[0], tmp_path / "adapter"))


def check(base: Path, folder: Path) -> None:
    check_export(str(base), Export("adapter", str(folder)))


def refusal(base: Path, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check(base, folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def configure(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "4"}, "r must be a whole number, at least 1; found '4'"),
        ({"r": ...}, "r must be a whole number, at least 1; it is missing"),
        ({"r": 0}, "r must be a whole number, at least 1; found 0"),
        ({"r": True}, "r must be a whole number, at least 1; found True"),
        ({"lora_alpha": 0}, "lora_alpha must be a number other than 0; found 0"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number other than 0; found 1000"),
        ({"lora_dropout": "a"}, "lora_dropout must be a number from 0 to 1; found 'a'"),
        ({"lora_dropout": 2}, "lora_dropout must be a number from 0 to 1; found 2"),
        ({"use_rslora": "false"}, "use_rslora must be true or false; found 'false'"),
        ({"use_dora": "false"}, "use_dora must be true or false; found 'false'"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, "which is no regular expression"),
        ({"r": 8}, "model.layers.0.mlp.down_proj has factors of rank 4, and adapter_config.json says 8"),
        ({"rank_pattern": {"v_proj": 2}}, "self_attn.v_proj has factors of rank 4, and adapter_config.json says 2"),
        ({"rank_pattern": {"v_proj": "4"}}, "rank_pattern must be layers' names with their ranks"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern has '(', which is no regular expression"),
        ({"rank_pattern": [4]}, "rank_pattern must be layers' names with their ranks"),
        ({"lora_alpha": None}, "lora_alpha must be a number other than 0; found None"),
        ({"lora_alpha": ...}, "lora_alpha must be a number other than 0; it is missing"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number other than 0; found nan"),
        ({"alpha_pattern": {"v_proj": None}}, "alpha_pattern must be layers' names with numbers"),
        ({"target_modules": None}, "target_modules must be a list of layers' names, a pattern, or 'all-linear'"),
        ({"target_modules": [1]}, "target_modules must be a list of layers' names"),
        ({"target_modules": "("}, "adapter_config.json: "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be a start that leaves the base model's weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights must be a start that leaves the base model's weights"),
        ({"bias": "all"}, "bias='all' is more than low-rank factors"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] is more than low-rank factors"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication=[[0, 2], [1, 2]] is more than low-rank factors"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices=[3] is more than low-rank factors"),
        ({"target_parameters": ["x.weight"]}, "target_parameters=['x.weight'] is more than low-rank factors"),
        ({"of_tomorrow": {"a": 1}}, "of_tomorrow={'a': 1} is more than low-rank factors"),
        ({"use_dora": True}, "lacks its lora_magnitude_vector, and adapter_config.json says use_dora=True"),
        ({"peft_type": "BEAMLORA"}, "(beamlora.export_lora writes a plain LoRA)"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_the_files(base: Path, copy: Path, values: dict[str, Any], message: str) -> None:
    configure(copy, **values)
    assert message in refusal(base, copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, "has factors of model.layers.0.mlp.down_proj, which target_modules"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]},
         "lacks the factors of model.layers.0.self_attn.k_proj (2 of 8 layers that target_modules"),
        ({"target_modules": "all-linear"}, "lacks the factors of model.layers.0.mlp.gate_proj (8 of 14 layers"),
        ({"target_modules": r".*\.(q|v)_proj"}, "has factors of model.layers.0.mlp.down_proj, which target_modules"),
        ({"layers_to_transform": [0]}, "has factors of model.layers.1.mlp.down_proj, which target_modules"),
        ({"exclude_modules": ["v_proj"]}, "has factors of model.layers.0.self_attn.v_proj, which target_modules"),
    ],
)  # fmt: skip
def test_layers_that_only_the_file_or_only_the_configuration_has(
    base: Path, copy: Path, values: dict[str, Any], message: str
) -> None:
    configure(copy, **values)
    assert message in refusal(base, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t.pop(f"{Q}.lora_{factor}.weight") for factor in "AB"],
         "lacks the factors of model.layers.1.self_attn.q_proj (1 of 6 layers that target_modules"),
        (lambda t: t[f"{Q}.lora_B.weight"][0].fill_(torch.nan), f"the tensor {Q}.lora_B.weight has values that are"),
        (lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"].bfloat16() * torch.inf}),
         f"the tensor {Q}.lora_A.weight has values that are NaN or infinite"),
        (lambda t: t.update({f"{Q}.lora_{f}.weight": torch.ones(s) for f, s in (("A", (2, 64)), ("B", (64, 2)))}),
         "model.layers.1.self_attn.q_proj has factors of rank 2, and adapter_config.json says 4"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(320, 64)}),
         "base_model.model.lm_head.weight is no low-rank factor"),
        (lambda t: t.update({f"{Q}.bias": torch.ones(64)}), f"{Q}.bias is no low-rank factor"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(64)}),
         "self_attn.q_proj has a lora_magnitude_vector, and adapter_config.json says use_dora=False"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_the_configuration_says(
    base: Path, copy: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    rewrite(copy, change)
    assert message in refusal(base, copy)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's advice
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.0.*\.(q|up)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.o_proj"]},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"init_lora_weights": "gaussian"},
        {"target_modules": ["model.layers.1.mlp.up_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_what_peft_saves_is_in_order(
    base: Path, make_adapter: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = make_adapter(base, tmp_path / "adapter", seed=1, **{"init_lora_weights": False, **options})
    if "embed_tokens" not in options.get("target_modules", ()):
        return check(base, folder)
    # PEFT saves the whole embedding beside its factors, and would put it into the base model of all adapters.
    assert "embed_tokens.base_layer.weight is no low-rank factor" in refusal(base, folder)
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "base_layer" in name])
    check(base, folder)
    return None


def test_a_merged_model_is_whole_and_finite(base: Path, merged: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def refused(change: Callable[[dict[str, Any]], Any] = lambda tensors: None, **config: Any) -> str:
        from safetensors.torch import load_file, save_file

        folder = Path(shutil.copytree(merged, tmp_path / "merged", dirs_exist_ok=True))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        with pytest.raises(UserError) as caught:
            check_export(str(base), Export("merged", str(folder)))
        return str(caught.value)

    assert f"no {name}; " in refused(lambda tensors: tensors.pop(name))
    assert f"the tensor {name} has values that are NaN" in refused(lambda tensors: tensors[name].fill_(torch.nan))
    assert "no model.layers.2.input_layernorm.weight" in refused(num_hidden_layers=3)
    assert "is quantized (quantization_config" in refused(quantization_config={"quant_method": "gptq", "bits": 4})


def test_a_configuration_nested_too_deep(base: Path, copy: Path) -> None:
    (copy / "adapter_config.json").write_text("[" * 100_000)
    assert "not readable as JSON" in refusal(base, copy)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool])
def test_factors_that_are_integers(base: Path, copy: Path, kind: torch.dtype) -> None:
    rewrite(copy, lambda tensors: tensors.update({f"{Q}.lora_A.weight": tensors[f"{Q}.lora_A.weight"].to(kind)}))
    assert f"{Q}.lora_A.weight holds no floating-point numbers" in refusal(base, copy)
