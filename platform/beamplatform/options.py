"""Command-line options that several pipelines share."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from beamplatform.suite import Preset, Suite, find_suite, load_preset

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, which holds `tune_spaces`."""


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Options that name a suite, its preset, changes to it, and where results go."""
    parser.add_argument("--suite", required=True, help="a name in tune_spaces/, or the path of your own .yaml file")
    parser.add_argument("--preset", help="one of the suite's presets; default: paper with a GPU, tiny without")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with <task>/train.json and <task>/test.json")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the preset, such as training.max_steps=20; may be repeated",
    )  # fmt: skip
    parser.add_argument("--storage", default="runs", metavar="DIR", help="folder or URI for results (default: runs)")
    add_tracking_option(parser)


def add_tracking_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri", metavar="URI",
        help="MLflow store; default: MLFLOW_TRACKING_URI, else mlflow.db in the working folder",
    )  # fmt: skip


def load(arguments: argparse.Namespace, options: Mapping[str, str | None]) -> tuple[Suite, str, Preset]:
    """The checked suite and preset; `options` are further command-line values by their key in the preset.

    Raises:
        UserError: what is wrong in the suite or in an option.
    """
    overrides = list(arguments.overrides)
    if arguments.data_dir:
        overrides.append(f"data.source={arguments.data_dir}")
    overrides += [f"{key}={value}" for key, value in options.items() if value is not None]
    path = find_suite(arguments.suite, ROOT / "tune_spaces")
    return load_preset(path, arguments.preset, has_gpu=has_gpu(), overrides=overrides)


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, or a cluster is named whose nodes may (a guess without loading torch)."""
    return shutil.which("nvidia-smi") is not None or bool(os.environ.get("RAY_ADDRESS"))
