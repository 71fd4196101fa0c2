"""Options of the command line: what each pipeline makes of them before anything large is imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from beamplatform import hardware
from beamplatform.cli.options import Parser, as_text, check_name, load, seeds_of, split
from beamplatform.errors import UserError
from beamplatform.hardware import gpus, has_gpu


def parse(*line: str) -> argparse.Namespace:
    parser = Parser(prog="test")
    parser.add_argument("--name")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--fast", action="store_true")
    return parser.parse_args(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--name", "a", "--name", "a"], "--name: is given twice"),
        (["--storage", "runs", "--storage=runs"], "--storage: is given twice"),
        (["--name", ""], "--name: its value is empty"),
        (["--name="], "--name: its value is empty"),
        (["--nam"], "expected one argument"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["--name", "a\udcff"], "is not UTF-8 text"),
    ],
)
def test_wrong_lines(line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*line)
    assert "\n" not in str(caught.value)


def test_a_right_line() -> None:
    found = parse("--name", "a", "--set", "a=1", "--set", "a=", "--fast", "--fast")
    assert (found.name, found.storage, found.overrides, found.fast) == ("a", "runs", ["a=1", "a="], True)
    assert parse("--name", "a").name == "a", "what another line gave is forgotten"


@pytest.mark.parametrize("name", ["a", "0", "_a.b-c", "x" * 100])
def test_names_that_are_allowed(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "..", "a/b", "../../x", "a\nb", "a\n", "ä", "a b", "x" * 101])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(UserError, match=r"--name .*1 to 100 letters, digits") as caught:
        check_name(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(UserError, match="--name answers: this is the folder of the answers"):
        check_name("answers")


@pytest.mark.parametrize("text", [",", "", "a,", ",a", "a,,b", "a,a", "a, b ,a"])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"--methods .*(empty part|is listed twice)"):
        split("--methods", text)


def test_lists_and_seeds() -> None:
    assert split("--methods", "a, b") == ["a", "b"]
    assert seeds_of("--seeds", "0-3,7") == ["0", "1", "2", "3", "7"]
    for text, message in (("3-0", "ascends"), ("0-5000", "at most 1000"), ("0-3,2", "2 is listed twice")):
        with pytest.raises(UserError, match=f"--seeds {text}: .*{message}"):
            seeds_of("--seeds", text)


def loaded(*overrides: str, earlier: tuple[str, ...] = (), **given: str):
    arguments = argparse.Namespace(suite="commonsense", preset="tiny", data_dir=None, overrides=list(overrides))
    return load(arguments, {f"--{key}": (f"search.{key}", value) for key, value in given.items()}, earlier)[2]


@pytest.mark.parametrize(
    ("overrides", "given", "message"),
    [
        (["training.max_steps=5", "training.max_steps=6"], {}, "--set training.max_steps=6: takes the place of --set"),
        (["methods.lora.r=4", "methods.lora={}"], {}, r"--set methods.lora=\{\}: takes the place"),
        (["search.trials=4"], {"trials": "5"}, "--trials 5: takes the place of --set search.trials=4"),
        (["a..b=3"], {}, "must have the form key=value"),
        (["=3"], {}, "must have the form key=value"),
    ],
)
def test_a_value_that_is_given_twice(overrides: list[str], given: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(*overrides, **given)


def test_values_of_a_sweep_that_is_extended_may_be_replaced() -> None:
    preset = loaded("training.epochs=2", earlier=("training.max_steps=5", "search.trials=3"), trials="4")
    assert (preset.training.epochs, preset.training.max_steps) == (2, None)
    assert preset.search.trials == 4
    assert loaded("methods.lora={r: 4}", "methods.lora.r=2").methods["lora"] == {"r": 2}


def test_a_text_stays_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML would read these folders as a number, a boolean and a mapping."""
    monkeypatch.chdir(tmp_path)
    for name in ("7", "yes", "a: b", "ä"):
        (tmp_path / name).mkdir()
        arguments = argparse.Namespace(suite="commonsense", preset="tiny", data_dir=name, overrides=[])
        assert load(arguments, {})[2].data.source == str(tmp_path / name)
    assert as_text(None) is None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with no program but those in this folder."""
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus.cache_clear()
    yield tmp_path
    gpus.cache_clear()


def nvidia_smi(folder: Path, lines: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho asked >> {folder}/asked\n{lines}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ('echo "NVIDIA H200, 143771 MiB, 570.86.15"', True),
        ('echo "No devices were found"', False),
        ('echo "NVIDIA-SMI has failed because it could not communicate with the driver."; exit 9', False),
        ('echo "NVIDIA H200, 143771 MiB, 570.86.15"; exit 1', False),
        ("", False),
    ],
)
def test_a_gpu_is_one_that_the_driver_lists(machine: Path, lines: str, found: bool) -> None:
    nvidia_smi(machine, lines)
    assert has_gpu() is found and has_gpu() is found
    assert (machine / "asked").read_text() == "asked\n", "asked once"


def test_a_machine_without_a_driver_and_one_that_hides_its_gpus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_gpu()
    gpus.cache_clear()
    nvidia_smi(machine, 'echo "NVIDIA H200, 143771 MiB, 570.86.15"')
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not has_gpu()
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert has_gpu()


def test_a_program_that_hangs_is_no_driver(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_SECONDS", 0.2)
    nvidia_smi(machine, f"{'/bin/sleep' if os.path.exists('/bin/sleep') else '/usr/bin/sleep'} 5")
    assert not has_gpu()
