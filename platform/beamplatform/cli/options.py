"""Command-line options that several pipelines share."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from beamplatform.config.suite import Override, Preset, Suite, find_suite, load_preset, read_suite
from beamplatform.errors import UserError, shortened
from beamplatform.hardware import has_gpu
from beamplatform.io.storage import DEFAULT_STORAGE
from beamplatform.validation import NAME, NAME_IN_WORDS, expand_ranges, repeated

ROOT = Path(__file__).resolve().parents[3]
"""The folder of the checkout, which holds `tune_spaces`."""

ANSWERS = "answers"
"""Name of the folder below a storage in which all its sweeps store the answers of models."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`, and refuses options that are given twice or with an empty value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        for action in (None, "store"):
            self.register("action", action, _Once)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # argparse declares overloads of this method
        arguments = list(sys.argv[1:] if args is None else args)
        for previous, argument in zip(["", *arguments], arguments, strict=False):
            if not argument or re.fullmatch(r"--[\w-]+=", argument):
                raise UserError(f"{argument.rstrip('=') or previous}: its value is empty; give one, or leave it out")
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise UserError(f"{argument!r}: is not UTF-8 text; write it in UTF-8") from None
        return super().parse_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows what is allowed)")


class _Once(argparse.Action):
    """Store the value of an option, as argparse does, but refuse a second value."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        seen = namespace.__dict__.setdefault("_given", set())
        if self.dest in seen:
            raise UserError(f"{option_string}: is given twice; give it once")
        seen.add(self.dest)
        setattr(namespace, self.dest, values)


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a suite, its preset and changes to the preset."""
    parser.add_argument("--suite", required=True, help="a name in tune_spaces/, or the path of your own .yaml file")
    parser.add_argument("--preset", help="one of the suite's presets; default: paper with a GPU, tiny without")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with <task>/train.json and <task>/test.json")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the preset, such as training.max_steps=20; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--i-accept-unsafe-execution", dest="unsafe", action="store_true",
        help="HumanEval, MBPP: run the model's programs without a sandbox, with your rights on this machine; the "
        "result says so",
    )  # fmt: skip


def unsafe_options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of tasks (`Task.options`) that only the command line can put in force, never a suite."""
    return ("unsafe",) if arguments.unsafe else ()


def add_tracking_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri", metavar="URI",
        help="MLflow store; default: MLFLOW_TRACKING_URI, else mlflow.db in the working folder",
    )  # fmt: skip


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the pipelines that train: a preset, and where results go."""
    add_preset_options(parser)
    add_tracking_option(parser)
    parser.add_argument(
        "--storage", metavar="DIR", default=os.environ.get("BEAMLORA_STORAGE") or DEFAULT_STORAGE,
        help=f"folder or URI for results; default: BEAMLORA_STORAGE, else {DEFAULT_STORAGE} in the working folder",
    )  # fmt: skip


def load(
    arguments: argparse.Namespace, options: Mapping[str, tuple[str, str | None]], earlier: Sequence[str] = ()
) -> tuple[Suite, str, Preset]:
    """Return the checked suite, the name of the chosen preset, and the preset.

    Args:
        arguments: parsed by a parser with `add_preset_options`.
        options: further options that set a value of the preset: option -> (key, value as YAML, or None if not given).
        earlier: values of a sweep that is extended, in the form of `--set`. The options given now take precedence.

    Raises:
        UserError: something is wrong in the suite or in an option.
    """
    new_overrides = [_assignment(text) for text in arguments.overrides]
    for option, (key, value) in {"--data-dir": ("data.source", as_text(arguments.data_dir)), **options}.items():
        if value is not None:
            typed = value[1:-1] if value[:1] in ("[", '"') else value
            new_overrides.append(Override(shortened(f"{option} {typed}"), key, value))
    for index, override in enumerate(new_overrides):
        for previous in new_overrides[:index]:
            if f"{previous.key}.".startswith(f"{override.key}."):
                raise UserError(f"{override.typed}: takes the place of {previous.typed}; give one of the two")
    path = find_suite(arguments.suite, ROOT / "tune_spaces")
    overrides = [*map(_assignment, earlier), *new_overrides]
    return load_preset(path, arguments.preset, has_gpu=has_gpu(), overrides=overrides)


def _assignment(text: str) -> Override:
    """Return the override that one `--set` gives."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {shortened(text)}: must have the form key=value, such as training.max_steps=20")
    return Override(shortened(f"--set {text}"), key, value)


def suite_name(name_or_path: str) -> str:
    """Return the name in a suite file; nothing else in the file is checked.

    Raises:
        UserError: there is no such suite, or the file has no name.
    """
    path = find_suite(name_or_path, ROOT / "tune_spaces")
    _, content = read_suite(path)
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{path}: a suite needs the key name")
    return name


def as_text(text: str | None) -> str | None:
    """Return the YAML of an option whose value is always a text, even a folder whose name looks like a number."""
    return None if text is None else json.dumps(text, ensure_ascii=False)


def as_list(option: str, text: str | None) -> str | None:
    """Return the YAML list of a comma-separated option."""
    return None if text is None else f"[{','.join(split(option, text))}]"


def split(option: str, text: str) -> list[str]:
    """Return the parts of a comma-separated option.

    Raises:
        UserError: a part is empty or repeated.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{option} {text}: must be a list such as A,B, without an empty part")
    if (twice := repeated(parts)) is not None:
        raise UserError(f"{option} {text}: {twice} is listed twice; name each once")
    return parts


def seeds_of(option: str, text: str) -> list[str]:
    """Return the seeds of a comma-separated option, in which 0-3 stands for 0, 1, 2 and 3.

    Raises:
        UserError: a part is empty, a range is invalid, or a seed is repeated.
    """
    try:
        seeds = [str(seed) for seed in expand_ranges(split(option, text))]
    except ValueError as error:
        raise UserError(f"{option} {text}: {error}") from None
    if (twice := repeated(seeds)) is not None:
        raise UserError(f"{option} {text}: {twice} is listed twice; name each once")
    return seeds


def check_name(name: str | None) -> None:
    """Check the name that the user gives a sweep, which is also the name of its folder.

    Raises:
        UserError: the name is not allowed; the message says which names are.
    """
    if name is None:
        return
    if not re.fullmatch(NAME, name) or name.endswith("\n"):
        raise UserError(f"--name {shortened(name if name.isprintable() else repr(name))}: must be {NAME_IN_WORDS}")
    if name == ANSWERS:
        raise UserError(f"--name {name}: this is the folder of the answers that all sweeps share; choose another name")
