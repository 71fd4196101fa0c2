"""The plan: trials and their names, ranks against shapes, memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from beamplatform.config.trial import Trial
from beamplatform.errors import UserError
from beamplatform.inference.identity import content_hash
from beamplatform.methods import get_method
from beamplatform.models.loading import resolve_path
from beamplatform.models.shapes import ModelShapes, model_shapes
from beamplatform.sweep.cluster.cluster import Cluster
from beamplatform.sweep.plan.memory_estimate import estimate, target_shapes


@pytest.fixture
def model() -> ModelShapes:
    return model_shapes("tiny", content_hash(resolve_path("tiny")))


def test_the_name_follows_the_values_and_nothing_else(trial) -> None:
    first, other_seed = trial("lora", search__seeds=[1]), trial("lora", search__seeds=[2])
    assert first.configuration == other_seed.configuration and first.name != other_seed.name
    assert trial("lora", methods__lora__r=4).configuration != first.configuration
    assert Trial.model_validate(first.model_dump()) == first
    assert Trial.model_validate_json(first.model_dump_json()) == first


def test_steps_from_epochs_and_from_max_steps(trial) -> None:
    by_epochs = trial("lora", training__max_steps=None, training__epochs=2.5, training__global_batch=16)
    assert by_epochs.total_steps(100) == round(6 * 2.5)
    assert trial("lora").total_steps(100) == 100
    with pytest.raises(ValueError, match=r"global_batch \(16\) is larger than the training set \(10\)"):
        trial("lora").total_steps(10)


def test_all_linear_leaves_out_the_output_head(trial, model) -> None:
    values = get_method("lora").hyperparameters.model_validate({"learning_rate": 1e-3, "target_modules": "all-linear"})
    shapes = target_shapes(model, values)
    assert len(shapes) == 7 * model.config["num_hidden_layers"]
    full = get_method("full").hyperparameters.model_validate({"learning_rate": 1e-3})
    assert target_shapes(model, full) == shapes


def test_memory_counts_the_models_own_parameters_and_shards_them(trial, model) -> None:
    one = trial("lora", training__zero_stage=3)
    method = one.make_method(1000)
    shapes = target_shapes(model, method.values)
    alone = estimate(one, method, model, shapes)
    assert alone.weights == 4 * model.parameters
    parameters = sum(8 * (a + b) for a, b in shapes.values())
    assert alone.adapter == parameters * (4 + 4 + 8 + 4), "weight, gradient, two moments and a master weight"
    four = trial("lora", training__zero_stage=3, training__workers=4, training__micro_batch=4)
    sharded = estimate(four, method, model, shapes)
    assert sharded.weights == alone.weights // 4 + alone.weights, "a share, and what is gathered"
    assert sharded.activations == alone.activations // 4


def test_memory_of_methods_that_take_more_than_an_adapter(trial, model) -> None:
    total = model.parameters
    full = trial("full", training__zero_stage=0)
    found = estimate(full, full.make_method(1000), model, target_shapes(model, full.make_method(1000).values))
    assert found.adapter == total * (4 + 8), "gradient and two moments; the weights are counted as such"
    growing = trial("increlora", training__zero_stage=0)
    method = growing.make_method(1000)
    shapes = target_shapes(model, method.values)
    adapter = sum(32 * (a + b) for a, b in shapes.values())
    dense = sum(a * b for a, b in shapes.values())
    assert estimate(growing, method, model, shapes).adapter == adapter * (4 + 4 + 8 + 12) + 4 * dense
    halved = trial("full", training__zero_stage=2, training__workers=16, training__micro_batch=1)
    found = estimate(halved, full.make_method(1000), model, {})
    assert found.adapter == total * 4 // 16 + total * 12 // 16, "a share of a byte is not lost"


def test_a_method_may_have_a_batch_of_its_own(trial) -> None:
    own = trial("full", methods__full__global_batch=64)
    assert own.training.global_batch == 64 and own.training.accumulation == 4
    assert trial("lora", methods__full__global_batch=64).training.global_batch == 16
    with pytest.raises(UserError, match=r"methods__full__global_batch: .*must be a multiple of workers x micro_batch"):
        trial("lora", methods__full__global_batch=40)


def test_concurrency_follows_the_cluster(trial) -> None:
    pair = trial("lora", training__workers=2, training__micro_batch=8).training
    assert Cluster(8, 0, 8).concurrent(pair, None) == 4
    assert Cluster(64, 4, 8).concurrent(pair, None) == 2
    assert Cluster(8, 0, 8).concurrent(pair, 3) == 3
    assert Cluster(1, 0, 1).concurrent(pair, None) == 1
    on_gpus = pair.model_copy(update={"device": "gpu"})
    assert Cluster(8, 0, 8).concurrent(on_gpus, 3) == 3, "an autoscaling cluster brings the GPUs later"
    assert Cluster(8, 4, 8, grows=True).concurrent(on_gpus, None) == 3, "one that waits brings a node"
    assert Cluster(8, 4, 8, grows=True).concurrent(on_gpus, 7) == 7
    grown = Cluster(8, 0, 8, grows=True, most_cpus=192, most_gpus=16)
    assert grown.concurrent(on_gpus, None) == 8, "all that can come, at once"
    assert grown.concurrent(pair.model_copy(update={"device": "auto"}), None) == 8
    quarter = pair.model_copy(update={"device": "gpu", "workers": 1, "gpus_per_worker": 0.25})
    assert Cluster(64, 2, 64).concurrent(quarter, None) == 8, "four trials share a GPU"
    assert Cluster(64, 2, 64).spare(quarter, 4) == 1 and Cluster(64, 2, 64).less(0, 1).concurrent(quarter, None) == 4
    assert not Cluster(8, 4, 8).uses_gpu(pair.model_copy(update={"device": "cpu"}))


def test_a_prompt_that_does_not_fit_is_found_before_training(trial) -> None:
    from beamplatform.evaluation.evaluator import Evaluator
    from beamplatform.tasks.record import Record

    one = trial("lora")
    long = {"boolq": [Record("word " * 3000, "the correct answer is true", "true")]}
    section = one.evaluation.model_copy(update={"tasks": ("boolq",)})
    with pytest.raises(UserError, match=r"boolq: 1 of 1 prompts do not fit the model's context"):
        Evaluator(one.model, section, long, adapters=1, largest_rank=8).check()


def test_a_machine_without_a_sandbox_is_told_before_training(trial, monkeypatch: pytest.MonkeyPatch) -> None:
    from beamplatform.evaluation.evaluator import Evaluator
    from beamplatform.tasks.record import Record

    monkeypatch.setenv("PATH", "/nowhere")
    one = trial("lora")
    section = one.evaluation.model_copy(update={"tasks": ("humaneval",)})
    evaluator = Evaluator(one.model, section, {"humaneval": [Record("q", "o", "{}")]}, adapters=1, largest_rank=8)
    with pytest.raises(UserError, match="made by bubblewrap, which is not here: install it with"):
        evaluator.check()
    records = {"humaneval": [Record("word " * 3000, "o", "{}")]}
    unsafe = Evaluator(one.model, section, records, adapters=1, largest_rank=8, options=["unsafe"])
    with pytest.raises(UserError, match="prompts do not fit the model's context"):  # no word of a sandbox
        unsafe.check()


def test_gpt2s_layers_are_found_too(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, architectures=["GPT2LMHeadModel"]).save_pretrained(
        tmp_path
    )
    model = model_shapes(str(tmp_path), content_hash(str(tmp_path)))
    values = get_method("lora").hyperparameters.model_validate({"learning_rate": 1e-3, "target_modules": ["c_attn"]})
    assert target_shapes(model, values) == {"transformer.h.0.attn.c_attn": (96, 32)}


def test_a_range_of_workers_shares_the_same_global_batch(trial) -> None:
    elastic = trial("lora", training__workers={"min": 2, "max": 6}, training__global_batch=16, training__micro_batch=8)
    training = elastic.training
    assert training.worker_counts == [4, 2] and training.accumulation == 1
    for number, micro_batch, accumulation in ((4, 4, 1), (2, 8, 1)):
        one = training.with_workers(number)
        assert (one.workers, one.micro_batch, one.accumulation) == (number, micro_batch, accumulation)
        assert one.workers * one.micro_batch * one.accumulation == 16
    fixed = trial("lora", training__workers=2, training__micro_batch=4).training
    assert fixed.with_workers(2) == fixed and fixed.worker_counts == [2]
    assert Cluster(8, 0, 8).concurrent(training, None) == 2 and Cluster(3, 0, 3).concurrent(training, None) == 1
    with pytest.raises(UserError, match=r"workers: no number from 5 to 7 divides global_batch \(16\)"):
        trial("lora", training__workers={"min": 5, "max": 7})
    with pytest.raises(UserError, match=r"workers.min: Field required"):
        trial("lora", training__workers={"max": 7})
    with pytest.raises(UserError, match=r"greater than or equal to 1, got 0"):
        trial("lora", training__workers=0)


def test_what_is_wrong_with_records_is_told_in_the_plan_and_refused_above_a_share(plan, capsys) -> None:
    from rich.console import Console

    from beamplatform.sweep.plan.describe import print_plan

    with pytest.raises(
        UserError, match=r"no training record has a token that the loss counts.*--set data.max_length=32"
    ):
        plan("lora", data__max_length=8)
    with pytest.raises(UserError, match=r"of 300 .* are cut at data.max_length \(30 tokens.*data.tolerated.cut=0\.\d+"):
        plan("lora", data__max_length=30)
    tolerant = plan("lora", data__max_length=30, data__tolerated__cut=1, data__tolerated__without_targets=1)
    print_plan(tolerant, Console(width=200))
    assert "are cut at data.max_length (30 tokens; the longest has 32)" in capsys.readouterr().out
    usual = plan("lora", data__max_length=30, data__tolerated={"cut": 1, "without_targets": 1, "empty": 0})
    assert [one.trial.name for one in usual.checked["lora"]] == [one.trial.name for one in tolerant.checked["lora"]]


def test_a_model_without_attention_is_planned_too(trial, tmp_path: Path) -> None:
    from transformers import MambaConfig

    MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4).save_pretrained(tmp_path)
    mamba = model_shapes(str(tmp_path), "mamba")
    one = trial("lora", methods__lora__target_modules="all-linear")
    method = one.make_method(1000)
    assert estimate(one, method, mamba, target_shapes(mamba, method.values)).activations > 0
    unknown = ModelShapes("Mine", 1, mamba.linear, mamba.config | {"hidden_size": None})
    with pytest.raises(UserError, match="this Mine names no hidden_size"):
        estimate(one, method, unknown, target_shapes(mamba, method.values))


def test_a_warm_up_ends_within_the_run(plan) -> None:
    """The tiny preset's is of 10 steps."""
    assert plan("lora", training__max_steps=10).checked["lora"][0].steps == 10
    with pytest.raises(UserError, match=r"lora: training.warmup: 10 steps of warm-up go beyond the last of 9 steps"):
        plan("lora", training__max_steps=9)
    assert plan("lora", training__max_steps=9, training__warmup=0.99).checked["lora"][0].steps == 9
