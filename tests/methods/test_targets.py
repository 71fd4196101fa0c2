"""Which layers are adapted: those that are named, each of which must be there, and no fused experts."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest
import torch
from method_run import IDS, exported_logits, train
from small_models import SIZES, mixtral, saved

from beamplatform.errors import UserError
from beamplatform.inference import Export, check_export
from beamplatform.methods import METHODS, get_method
from beamplatform.models.shapes import ModelShapes, model_shapes
from beamplatform.sweep.plan.memory_estimate import target_shapes

ADAPTERS = [name for name in METHODS if name != "full"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixtral(tmp_path_factory.mktemp("mixtral"))


def chosen(model: ModelShapes, *targets: str) -> set[str]:
    values = {"learning_rate": 1e-3, "target_modules": targets}
    return set(target_shapes(model, get_method("lora").hyperparameters.model_validate(values)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_porj"], "no such layer in the model as 'v_porj'; did you mean 'v_proj'? allowed: 'all-lin"),
        (["q_proj", "o-proj", "up"], "no such layer in the model as 'o-proj'; did you mean 'o_proj'? allowed"),
        (["zzz"], "no such layer in the model as 'zzz'; allowed: 'all-linear', or a list of down_proj, gate_proj"),
        (["proj"], "no such layer in the model as 'proj'; "),
        (["all-linear"], "no such layer in the model as 'all-linear'; "),
        ([r".*\.q_proj"], r"no such layer in the model as '.*\\.q_proj'; "),
        (["q_proj", "mlp.q_proj"], "no such layer in the model as 'mlp.q_proj'; did you mean"),
        (["layers.9.self_attn.q_proj"], "no such layer in the model as 'layers.9.self_attn.q_proj'; "),
        (["q_proj", "embed_tokens"], "'embed_tokens' is a Embedding, which no method adapts; allowed: "),
        (["q_proj", "model.norm"], "'model.norm' is a LlamaRMSNorm, which no method adapts; allowed: "),
        (["self_attn"], "no such layer in the model as 'self_attn'; "),
        ([], "target_modules: names no layer; allowed: 'all-linear', or a list of down_proj"),
    ],
)  # fmt: skip
def test_every_entry_names_a_linear_layer(targets: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen(model_shapes("tiny", "tiny"), *targets)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_head_is_adapted_where_it_is_named() -> None:
    model = model_shapes("tiny", "tiny")
    assert chosen(model, "0.self_attn.q_proj", "lm_head") == {"model.layers.0.self_attn.q_proj", "lm_head"}
    assert len(chosen(model, "q_proj")) == 6


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ADAPTERS)
def test_all_linear_layers_beside_fused_experts(name: str, mixture: Path, tmp_path: Path) -> None:
    method, model = train(name, str(mixture), "all-linear")
    adapted = {
        parameter.rpartition(".lora_A")[0] for parameter, _ in model.named_parameters() if ".lora_A" in parameter
    }
    assert {layer.removeprefix("base_model.model.") for layer in adapted} == set(model_shapes(str(mixture), "m").linear)
    with torch.no_grad():
        trained = model(IDS).logits
    method.export(model, tmp_path)
    check_export(str(mixture), Export(method.export_kind, str(tmp_path)))
    logits = exported_logits(method, str(mixture), str(tmp_path))
    assert (logits - trained).abs().max() / trained.abs().max() < 1e-5


def test_the_plan_says_what_is_left_out(root: Path, mixture: Path, tmp_path: Path) -> None:
    line = [root / "pipelines" / "sweep.py", "--suite", "commonsense", "--preset", "tiny", "--dry-run"]
    line += ["--set", f"model.path={mixture}", "--methods", "lora", "--set"]
    done = forked.run(*line, "shared.target_modules=all-linear", folder=tmp_path)
    said = "leaves out 4 layers that no method adapts: gate (MixtralTopKRouter), experts (MixtralExperts)"
    assert done.returncode == 0 and done.stdout.count(said) == 1, done.stdout + done.stderr
    done = forked.run(*line, "shared.target_modules=[q_proj, gate]", folder=tmp_path)
    assert done.returncode == 2 and "'gate' is a MixtralTopKRouter, which no method adapts" in done.stderr


def test_shared_experts_are_linear_layers(tmp_path: Path) -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        **SIZES, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16
    )
    path = str(saved(Qwen2MoeForCausalLM(config), tmp_path / "model"))
    _, model = train("lora", path, "all-linear")
    adapted = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(model_shapes(path, "qwen").linear)
    assert any("shared_expert" in name for name in adapted)
