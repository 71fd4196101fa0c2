"""The suite file: what is accepted, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from beamplatform.config.suite import Override, find_suite, load_preset
from beamplatform.errors import UserError


def load(
    root: Path,
    preset: str | None = "tiny",
    *,
    suite: str = "commonsense",
    has_gpu: bool = False,
    **changes: str,
):
    overrides = [Override(f"--set {k}", k.replace("__", "."), v) for k, v in changes.items()]
    return load_preset(root / "tune_spaces" / f"{suite}.yaml", preset, has_gpu=has_gpu, overrides=overrides)


def test_default_preset_follows_the_hardware(root: Path) -> None:
    assert load(root, None, has_gpu=False)[1] == "tiny"
    assert load(root, None, has_gpu=True)[1] == "paper"


def test_a_paper_only_suite_without_a_gpu_says_so(root: Path) -> None:
    with pytest.raises(UserError, match=r"math\.yaml: choose a preset with --preset .*no GPU.*paper, mistral"):
        load(root, None, suite="math")


@pytest.mark.parametrize(
    ("suite", "preset", "r", "schedule", "batch", "length", "loss_on"),
    [
        ("commonsense", "paper", 32, "linear", 16, 256, "all"),
        ("math", "paper", 64, "cosine", 32, 512, "response"),
        ("code", "paper", 64, "cosine", 32, 1024, "response"),
    ],
)
def test_published_settings(root, suite, preset, r, schedule, batch, length, loss_on) -> None:
    _, _, found = load(root, preset, suite=suite)
    assert found.shared["r"] == r
    assert (found.training.schedule, found.training.global_batch, found.training.epochs) == (
        schedule,
        batch,
        3,
    )
    assert (found.data.max_length, found.data.loss_on) == (length, loss_on)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"training__epoch": "3"},
            r"--set training__epoch: unknown key; did you mean 'epochs'\? allowed: workers",
        ),
        ({"training__max_steps": "many"}, "max_steps: input should be a valid integer.*got 'many'"),
        (
            {"training__workers": "3"},
            r"workers: training: global_batch \(16\) must be a multiple of .* 3 x 16 = 48|multiple of workers",
        ),
        ({"training__warmup": "1.5"}, "integer >= 0 .* fraction of all steps below 1, got 1.5"),
        ({"training__epochs": ".inf"}, r"epochs: input should be a finite number, got inf"),
        ({"training__gpus_per_worker": ".nan"}, "gpus_per_worker: input should be a finite number, got nan"),
        ({"training__warmup": ".nan"}, "warmup: input should be a finite number, got nan"),
        ({"search__budget": ".inf"}, "budget: input should be a finite number, got inf"),
        ({"evaluation__temperature": "-.inf"}, "temperature: input should be a finite number, got -inf"),
        ({"methods__lora__learning_rate": ".nan"}, "finite number, got nan"),
        ({"methods__lora__learning_rate": "{uniform: [1e-4, .inf]}"}, "bounds must be finite numbers"),
        ({"methods__lora__learning_rate": "{uniform: [1e-4, 1" + "0" * 400 + "]}"}, "bounds must be finite numbers"),
        ({"training__workers": "true"}, "workers: must not be true"),
        ({"methods__lora__r": "yes"}, "must not be true; give the value itself"),
        ({"data__max_length": "9" * 120}, r"max_length: must lie between -10\^100 and 10\^100"),
        ({"data__split_seed": "-1"}, "split_seed: input should be greater than or equal to 0, got -1"),
        ({"evaluation__sampling_seed": "4294967296"}, "sampling_seed: input should be less than 4294967296"),
        ({"search__seed": "-1"}, "search__seed: input should be greater than or equal to 0"),
        ({"search__trial_seed": "18446744073709551616"}, "trial_seed: input should be less than 4294967296"),
        ({"search__seeds": "[3-0]"}, "a range such as 0-3 ascends and has at most 1000 numbers, got 3-0"),
        ({"search__seeds": "[0-2, 1]"}, "seeds must differ"),
        ({"search__methods": "[lora, lora]"}, "lora is listed twice"),
        ({"evaluation__tasks": "[boolq, piqa, boolq]"}, "the task boolq is listed twice"),
        ({"shared": "{r: 4, lora_alpha: 8, r: 8}"}, "the key 'r' stands twice, first on line 1"),
        ({"training__max_steps": "2024-02-31"}, "'2024-02-31' cannot be read"),
        ({"model__path": '"a\\nb"'}, "must be a path without line breaks"),
        ({"model__path": "~nobody-of-this-name/x"}, "which has no home folder ~nobody-of-this-name"),
        ({"data__source": "y" * 300}, "must be a path without a part of more than 255 bytes"),
        ({"model__dtype": "fp8"}, "'auto', 'float32' or 'bfloat16', got 'fp8'"),
        ({"evaluation__tasks": "[bool]"}, "unknown task 'bool': allowed are boolq, piqa"),
        (
            {"methods__lorra__r": "3"},
            "unknown method; allowed: beamlora, full, lora, dora, pissa, milora, adalora, relora",
        ),
        ({"methods__lora__q": "3"}, "unknown key; allowed: learning_rate, global_batch, r, lora_alpha"),
        ({"methods__beamlora__p_init": "0"}, "greater than 0, got 0"),
        ({"methods__beamlora__p_init": "1.2"}, "less than 1, got 1.2"),
        ({"methods__beamlora__interval": "1"}, r"integer >= 2 .* in \(0, 1\), got 1"),
        ({"methods__beamlora__r": "{grid: [4, 1]}"}, "greater than or equal to 2, got 1"),
        ({"methods__lora__r": "{uniform: [4, 16]}"}, "valid integer, got a number with a fractional part"),
        ({"training__zero_stage": "3", "training__loss_head": "chunked"}, "loss_head: chunked needs the head's weight"),
        ({"training__zero_stage": "0", "training__offload_optimizer": "true"}, "offload_optimizer needs zero_stage 1"),
        ({"methods__beamlora__r": "{grids: [4]}"}, "exactly one key of grid, choice, uniform, loguniform"),
        ({"methods__lora__learning_rate": "{loguniform: [0, 1]}"}, "bounds must be above 0"),
        ({"methods__lora__learning_rate": "{uniform: [2, 1]}"}, "low < high"),
        ({"methods__adalora__init_r": "8"}, "init_r .8. must be above the target rank r .8."),
        ({"shared__rank": "8"}, "unknown hyperparameter; allowed: .*learning_rate"),
        ({"search__seeds": "[1, 1]"}, "seeds must differ"),
        ({"search__seeds": "[]"}, "at least 1 item"),
        ({"nonsense": "1"}, "unknown key; allowed: description, model"),
    ],
)
def test_bad_values_are_one_clear_line(root: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(root, **change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("changes", "steps", "epochs"),
    [
        ({"training__epochs": "2"}, None, 2),
        ({"training__max_steps": "7"}, 7, None),
        ({"training__epochs": "2", "training__max_steps": "7"}, 7, None),
        ({"training__max_steps": "7", "training__epochs": "2"}, None, 2),
        ({"training__max_steps": "null", "training__epochs": "2"}, None, 2),
    ],
)
def test_the_length_that_is_given_last_counts(
    root: Path, changes: dict[str, str], steps: int | None, epochs: float | None
) -> None:
    _, _, preset = load(root, **changes)
    assert (preset.training.max_steps, preset.training.epochs) == (steps, epochs)


def test_both_lengths_in_one_file_are_refused(tmp_path: Path, root: Path) -> None:
    text = (root / "tune_spaces" / "commonsense.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        text.replace("      max_steps: 100", "      max_steps: 100\n      epochs: 2", 1)
    )
    with pytest.raises(UserError, match="give exactly one of epochs and max_steps"):
        load_preset(tmp_path / "mine.yaml", "tiny", has_gpu=False)


@pytest.mark.parametrize(
    ("value", "seeds"), [("[0-3]", (0, 1, 2, 3)), ("0-3", (0, 1, 2, 3)), ("[7, 1-2]", (7, 1, 2)), ("5", (5,))]
)
def test_a_range_of_seeds(root: Path, value: str, seeds: tuple[int, ...]) -> None:
    assert load(root, search__seeds=value)[2].search.seeds == seeds


def test_every_seed_that_is_allowed_draws(root: Path) -> None:
    import torch

    for seed in (0, 2**32 - 1):
        _, _, preset = load(root, search__seed=str(seed), shared__learning_rate="{loguniform: [1e-4, 1e-3]}")
        assert 1e-4 < next(preset.space("lora").random(preset.search.seed))["learning_rate"] < 1e-3
        torch.manual_seed(seed * 1_000_003 + 4096)  # what a worker makes of the training seed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: mine\n".encode("utf-16"), "mine.yaml: line 1 is not UTF-8 text; save the file in UTF-8"),
        ("name: mine\n# é\n".encode("latin-1"), "mine.yaml: line 2 is not UTF-8 text"),
        (b"\x00\x01\x02", "mine.yaml: not valid YAML: unacceptable character"),
        (b"name: mine\npresets: {a: 1}\nname: yours\n", "line 3 not valid YAML: the key 'name' stands twice, first on"),
        pytest.param(b"[" * 5000, "nested too deeply", id="nested"),
        (b"name: !!bool x\n", "line 1 not valid YAML: 'x' cannot be read"),
        (b"3\n", "a suite needs the keys name and presets"),
        (b"name: mine\npresets: {1: {}}\n", "the name of a preset must be a text, got 1; put it in quotes"),
    ],
)
def test_a_file_that_is_no_suite(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_preset(tmp_path / "mine.yaml", None, has_gpu=False)
    assert "\n" not in str(caught.value)


def test_merged_keys_may_be_replaced() -> None:
    from beamplatform.config.yaml_source import parse_yaml

    text = "a: &a {one: 1, two: 2}\nb: &b {<<: *a, two: 3}\nc: {<<: *b, one: 4}\n"
    assert parse_yaml(text) == {"a": {"one": 1, "two": 2}, "b": {"one": 1, "two": 3}, "c": {"one": 4, "two": 3}}


def test_names_of_suites_and_presets_are_names_of_folders(tmp_path: Path, root: Path) -> None:
    text = (root / "tune_spaces" / "commonsense.yaml").read_text(encoding="utf-8")
    for old, new in (("name: commonsense", "name: ../x"), ("\n  tiny:", "\n  ../tiny:")):
        (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(UserError, match=r"mine\.yaml:\d+: .*should match pattern"):
            load_preset(tmp_path / "mine.yaml", "paper", has_gpu=False)


def test_the_file_and_line_of_a_wrong_key(tmp_path: Path, root: Path) -> None:
    text = (root / "tune_spaces" / "commonsense.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("      zero_stage: 2", "      zero_stag: 2", 1))
    line = 1 + path.read_text().splitlines().index("      zero_stag: 2")
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: presets\.tiny\.training\.zero_stag: unknown key"):
        load_preset(path, "tiny", has_gpu=False)


def test_the_line_of_a_wrong_hyperparameter(tmp_path: Path, root: Path) -> None:
    text = (root / "tune_spaces" / "commonsense.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("p_init: 0.96", "p_init: 1.96", 1))
    line = 1 + next(i for i, row in enumerate(path.read_text().splitlines()) if "1.96" in row)
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: presets\.tiny\.methods\.beamlora\.p_init: .*got 1\.96"):
        load_preset(path, "tiny", has_gpu=False)


def test_a_users_own_file_and_an_unknown_name(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\npresets: {}\n")
    assert find_suite(str(path), root / "tune_spaces") == path
    with pytest.raises(UserError, match="at least one entry"):
        load_preset(path, None, has_gpu=False)
    with pytest.raises(UserError, match="allowed: code, commonsense, math"):
        find_suite("common", root / "tune_spaces")
    path.write_text("name: [\n")
    with pytest.raises(UserError, match=r"mine\.yaml: line \d+ not valid YAML"):
        load_preset(path, None, has_gpu=False)


def test_numbers_are_read_as_people_write_them(root: Path) -> None:
    _, _, preset = load(root, shared__learning_rate="{loguniform: [1e-4, 1e-3]}")
    assert preset.space("lora").domains["learning_rate"].values == (1e-4, 1e-3)


def test_relative_paths_become_absolute(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    _, _, preset = load(root, data__source="mine")
    assert preset.data.source == str(tmp_path / "mine")
    (tmp_path / "tiny").mkdir()
    assert load(root)[2].model.path == "tiny", "the shipped model, whatever lies in this folder"


@pytest.mark.parametrize("preset", ["paper", "mistral"])
def test_questions_that_metamath_answers_several_times_are_no_reason_to_refuse(root: Path, preset: str) -> None:
    assert (
        load_preset(root / "tune_spaces" / "math.yaml", preset, has_gpu=True)[2].data.tolerated.validation_trained == 1
    )
