"""The suite file, which says what is trained, how it is scored and what is searched.

A suite is one YAML file in ``tune_spaces/`` (or the user's own) with one or more presets. Every key is declared with
its type and range, and is checked before anything starts. A wrong key, type or range is reported with the file, the
line, the key and what is allowed.
This module imports neither torch nor Ray: a bad suite is refused in milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from beamplatform.config.base import Section
from beamplatform.config.sections import (
    DataSection,
    EvaluationSection,
    ModelSection,
    SearchSection,
    TrainingSection,
)
from beamplatform.config.space import Space, parse_space
from beamplatform.config.yaml_source import line_of, parse_yaml, yaml_fault
from beamplatform.errors import UserError
from beamplatform.methods import METHODS, get_method
from beamplatform.validation import NAME, describe_error


class Preset(Section):
    """A complete, runnable setting of a suite."""

    description: str = ""
    model: ModelSection
    data: DataSection = DataSection()
    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()
    search: SearchSection = SearchSection()
    shared: dict[str, Any] = Field(
        default_factory=dict,
        description="hyperparameters for all methods that have them; a method's own value takes precedence",
    )
    methods: dict[str, dict[str, Any]] = Field(description="method -> hyperparameters: a value, or a domain to search")

    @model_validator(mode="after")
    def _methods_known(self) -> Preset:
        if not self.methods:
            raise ValueError(f"name at least one method; allowed: {', '.join(METHODS)}")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods.{name}: unknown method; allowed: {', '.join(METHODS)}")
            space = self.space(name)
            batches = space.domains["global_batch"].probes() if "global_batch" in space.domains else ()
            for batch in (space.fixed.get("global_batch"), *batches):
                self.training_of(name, {"global_batch": batch})
        for name in self.search.methods or ():
            if name not in self.methods:
                raise ValueError(f"search.methods: {name!r} is not below methods; allowed: {', '.join(self.methods)}")
        hyperparameters = {key for name in METHODS for key in get_method(name).hyperparameters.model_fields}
        if self.search.budget is None and self.search.stops_early and self.search.trials < self.search.reduction:
            raise ValueError(
                f"search.trials: {self.search.algorithm} continues one of {self.search.reduction} trials and "
                f"needs at least {self.search.reduction}, got {self.search.trials} trials"
            )
        for key in self.shared:
            if key not in hyperparameters:
                raise ValueError(f"shared.{key}: unknown hyperparameter; allowed: {', '.join(sorted(hyperparameters))}")
        return self

    def space(self, method: str) -> Space:
        """Return the method's search space, in which its own values replace the shared ones.

        Each value is checked against its type and range.
        """
        fields = get_method(method).hyperparameters.model_fields
        values = {key: value for key, value in self.shared.items() if key in fields}
        return parse_space(method, values | self.methods[method])

    def default_methods(self) -> tuple[str, ...]:
        """Return the methods that are compared if the user names none."""
        return self.search.methods or tuple(self.methods)

    def training_of(self, method: str, values: Mapping[str, Any]) -> TrainingSection:
        """Return the training section of one trial, with the global batch from `values`, if they have one.

        Raises:
            ValueError: the global batch does not fit workers and micro_batch.
        """
        batch = values.get("global_batch")
        if batch is None:
            return self.training
        try:
            return TrainingSection.model_validate(self.training.model_dump() | {"global_batch": batch})
        except ValidationError as error:
            raise ValueError(f"methods.{method}.global_batch: {describe_error(error, TrainingSection)[1]}") from None


class Suite(Section):
    """The content of a suite file."""

    name: str = Field(pattern=NAME, description="also the MLflow experiment")
    description: str = ""
    presets: Annotated[dict[Annotated[str, Field(pattern=NAME)], Preset], Field(min_length=1)]


@dataclass(frozen=True)
class Override:
    """One value of the preset that is given on the command line.

    Attributes:
        typed: what the user typed, for messages (``--seeds 0,1``).
        key: dotted key in the preset (``search.seeds``).
        value: YAML text.
    """

    typed: str
    key: str
    value: str


def find_suite(name_or_path: str, folder: Path) -> Path:
    """Return the path of a suite, given its name in `folder` (``commonsense``) or the path of a YAML file.

    Raises:
        UserError: there is no such suite; the message names those that exist.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.parent != Path("."):
        if not os.path.isfile(path):  # False, unlike Path.is_file, for a name that is too long
            raise UserError(f"--suite {name_or_path}: no such file")
        return path
    candidate = folder / f"{name_or_path}.yaml"
    if not os.path.isfile(candidate):
        names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none found"
        raise UserError(f"--suite {name_or_path}: not in {folder}; allowed: {names}, or a path to a .yaml file")
    return candidate


def read_suite(path: Path) -> tuple[str, Any]:
    """Return the text of a suite file, and its content as plain values that are not checked yet.

    Raises:
        UserError: the file cannot be read, is not UTF-8 text, or is not valid YAML; the message says where.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text; save the file in UTF-8") from None
    try:
        return text, parse_yaml(text)
    except yaml.YAMLError as error:
        line_number, problem = yaml_fault(error)
        where = f" line {line_number}" if line_number else ""
        raise UserError(f"{path}:{where} not valid YAML: {problem}") from None


def load_preset(
    path: Path, preset: str | None, *, has_gpu: bool, overrides: Sequence[Override] = ()
) -> tuple[Suite, str, Preset]:
    """Read a suite file, apply the overrides, check the result, and choose the preset.

    Args:
        path: the suite file.
        preset: name of the preset; None picks ``paper`` with a GPU and ``tiny`` without, or else the only preset.
        has_gpu: whether the machine or cluster has a GPU.
        overrides: values from the command line, in the given order.

    Returns:
        The suite, the name of the chosen preset, and the preset.

    Raises:
        UserError: something is wrong; the message is one line with the file, the line, the key and what is allowed.
    """
    text, raw = read_suite(path)
    presets = raw.get("presets") if isinstance(raw, dict) else None
    if not isinstance(presets, dict) or not presets:
        raise UserError(f"{path}: a suite needs the keys name and presets, presets with at least one entry")
    if odd := [key for key in presets if not isinstance(key, str)]:
        raise UserError(f"{path}: the name of a preset must be a text, got {odd[0]!r}; put it in quotes")
    names = list(presets)
    name = preset if preset is not None else _default_preset(path, names, has_gpu)
    if name not in presets:
        raise UserError(f"--preset {name}: not in {path}; allowed: {', '.join(names)}")
    for override in overrides:
        presets[name] = _override(presets[name], override)
    try:
        suite = Suite.model_validate(raw)
    except ValidationError as error:
        location, message = describe_error(error, Suite)
        # A check of a whole preset begins its message with the key that is wrong.
        key, colon, rest = message.partition(": ")
        if colon and " " not in key:
            location, message = [*location, *key.split(".")], rest
        raise UserError(f"{_error_location(path, text, location, overrides)}: {message}") from None
    return suite, name, suite.presets[name]


def _default_preset(path: Path, names: list[str], has_gpu: bool) -> str:
    preferred = "paper" if has_gpu else "tiny"
    if preferred in names:
        return preferred
    if len(names) == 1 and (has_gpu or names[0] != "paper"):
        return names[0]
    reason = "" if has_gpu else " (this machine has no GPU, which the preset 'paper' needs)"
    raise UserError(f"{path}: choose a preset with --preset{reason}; allowed: {', '.join(names)}")


def _error_location(path: Path, text: str, location: list[str], overrides: Sequence[Override]) -> str:
    """Return where a wrong value was given: on the command line, or else in the file."""
    key = ".".join(location[2:])
    for override in overrides:
        if f"{key}.".startswith(f"{override.key}.") or f"{override.key}.".startswith(f"{key}."):
            return override.typed if override.key == key else f"{override.typed}: {key}"
    line = line_of(text, location)
    return f"{path}:{line}: {'.'.join(location)}" if line else f"{path}: {'.'.join(location)}"


_INSTEAD_OF = {"training.max_steps": "training.epochs", "training.epochs": "training.max_steps"}
"""Pairs of keys of which a preset has exactly one: a value for one key on the command line removes the other key."""


def _override(preset: Any, override: Override) -> Any:
    """Return `preset` with one value set, which is not checked here."""
    try:
        value = parse_yaml(override.value)
    except yaml.YAMLError as error:
        raise UserError(f"{override.typed}: the value is not valid YAML: {yaml_fault(error)[1]}") from None
    replaced = _replaced(preset, override.key.split("."), value, override.typed)
    if value is not None and override.key in _INSTEAD_OF:
        section, _, other_key = _INSTEAD_OF[override.key].partition(".")
        replaced[section].pop(other_key, None)
    return replaced


def _replaced(node: Any, keys: list[str], value: Any, typed: str) -> Any:
    if not keys:
        return value
    if node is not None and not isinstance(node, Mapping):
        raise UserError(f"{typed}: {keys[0]!r} lies below a value that is not a mapping")
    branch = dict(node or {})
    branch[keys[0]] = _replaced(branch.get(keys[0]), keys[1:], value, typed)
    return branch
