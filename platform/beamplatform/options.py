"""Command-line options that several pipelines share."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from beamplatform.errors import UserError
from beamplatform.suite import Override, Preset, Suite, find_suite, load_preset
from beamplatform.yamlfile import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, which holds `tune_spaces`."""

DEFAULT_STORAGE = "runs"


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    """Options that name a suite, its preset and changes to it."""
    parser.add_argument("--suite", required=True, help="a name in tune_spaces/, or the path of your own .yaml file")
    parser.add_argument("--preset", help="one of the suite's presets; default: paper with a GPU, tiny without")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with <task>/train.json and <task>/test.json")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the preset, such as training.max_steps=20; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--i-accept-unsafe-execution", dest="unsafe", action="store_true",
        help="HumanEval, MBPP: run what the model wrote without bubblewrap, with your rights on this machine; the "
        "result says so",
    )  # fmt: skip


def unsafe_options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The options of the tasks (`Task.options`) that the command line alone can ask for, never a suite."""
    return ("unsafe",) if arguments.unsafe else ()


def add_tracking_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri", metavar="URI",
        help="MLflow store; default: MLFLOW_TRACKING_URI, else mlflow.db in the working folder",
    )  # fmt: skip


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Options of the pipelines that train: a preset, and where results go."""
    add_preset_options(parser)
    add_tracking_option(parser)
    parser.add_argument(
        "--storage", metavar="DIR", default=os.environ.get("BEAMLORA_STORAGE", DEFAULT_STORAGE),
        help=f"folder or URI for results; default: BEAMLORA_STORAGE, else {DEFAULT_STORAGE} in the working folder",
    )  # fmt: skip


def load(arguments: argparse.Namespace, options: Mapping[str, tuple[str, str | None]]) -> tuple[Suite, str, Preset]:
    """The checked suite and preset.

    Args:
        arguments: parsed by a parser with `add_preset_options`.
        options: further options that set a value of the preset: option -> (key, value as YAML, or None if not given).

    Raises:
        UserError: what is wrong in the suite or in an option.
    """
    overrides = []
    for assignment in arguments.overrides:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: must have the form key=value, such as training.max_steps=20")
        overrides.append(Override(f"--set {assignment}", key, value))
    # After --set, so that an option is the stronger one.
    for option, (key, value) in {"--data-dir": ("data.source", arguments.data_dir), **options}.items():
        if value is not None:
            overrides.append(Override(f"{option} {value.strip('[]')}", key, value))
    path = find_suite(arguments.suite, ROOT / "tune_spaces")
    return load_preset(path, arguments.preset, has_gpu=has_gpu(), overrides=overrides)


def suite_name(name_or_path: str) -> str:
    """The name that a suite file gives itself; only that is read.

    Raises:
        UserError: no such suite, or a file without a name.
    """
    path = find_suite(name_or_path, ROOT / "tune_spaces")
    content = parse_yaml(path.read_text(encoding="utf-8"))
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{path}: a suite needs the key name")
    return name


def as_list(text: str | None) -> str | None:
    """The YAML list of a comma-separated option."""
    return None if text is None else f"[{text}]"


def split(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, or a cluster is named whose nodes may (a guess without loading torch)."""
    return shutil.which("nvidia-smi") is not None or bool(os.environ.get("RAY_ADDRESS"))
