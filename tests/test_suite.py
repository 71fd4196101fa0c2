"""The suite file: what is accepted, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.suite import Override, find_suite, load_preset


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
        ({"training__epochs": "2"}, "exactly one of epochs and max_steps"),
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
    assert "\n" not in str(caught.value)


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
