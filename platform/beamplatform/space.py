"""Search spaces: a hyperparameter is a value, or one of Ray Tune's domains written as a one-key mapping.

r: 32                                  a fixed value
r: {grid: [16, 32]}                    every value, crossed with the other grids
r: {choice: [16, 32, 64]}              drawn, each equally likely
p_init: {uniform: [0.9, 0.99]}         drawn between two bounds
learning_rate: {loguniform: [1e-4, 1e-3]}
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from beamplatform.methods import get_method
from beamplatform.validation import describe_error

if TYPE_CHECKING:
    from numpy.random import RandomState

DOMAINS = ("grid", "choice", "uniform", "loguniform")


@dataclass(frozen=True)
class Domain:
    """One searched hyperparameter: `kind` is one of DOMAINS, `values` its choices or its two bounds."""

    kind: str
    values: tuple[Any, ...]

    def probes(self) -> tuple[Any, ...]:
        """Values that stand for all that could be drawn: every choice, or the bounds and a point between them."""
        if self.kind in {"grid", "choice"}:
            return self.values
        low, high = self.values
        return (low, high, low + (high - low) / math.pi)

    def draw(self, random_state: RandomState) -> Any:
        """One value, drawn by the Ray Tune domain of the same name (grids are not drawn)."""
        from ray import tune  # slow to import, and not needed to check a suite

        domain = tune.choice(list(self.values)) if self.kind == "choice" else getattr(tune, self.kind)(*self.values)
        return domain.sample(random_state=random_state)


@dataclass(frozen=True)
class Space:
    """The hyperparameters of one method: fixed values and domains."""

    method: str
    fixed: Mapping[str, Any]
    domains: Mapping[str, Domain]

    def configurations(self, samples: int, seed: int) -> list[dict[str, Any]]:
        """Every grid point with `samples` draws of the other domains; the same for the same seed, without repeats.

        The draws are resolved before anything starts (and not by Ray as trials start), so that `--dry-run` shows
        exactly what will run and a trial is known by its values.
        """
        grids = {key: domain.values for key, domain in self.domains.items() if domain.kind == "grid"}
        drawn = {key: domain for key, domain in self.domains.items() if domain.kind != "grid"}
        from numpy.random import RandomState

        # A stream of its own for every method: adding a method does not change what the others draw.
        generator = RandomState([seed, zlib.crc32(self.method.encode())])
        found: list[dict[str, Any]] = []
        for point in itertools.product(*grids.values()):
            for _ in range(samples):
                values = dict(self.fixed) | dict(zip(grids, point, strict=True))
                values |= {key: domain.draw(generator) for key, domain in drawn.items()}
                # Defaults are part of what a trial is: they are written out, not left to a later version's taste.
                resolved = get_method(self.method).hyperparameters.model_validate(values).model_dump(mode="json")
                if resolved not in found:
                    found.append(resolved)
        return found


def parse_space(method: str, values: Mapping[str, Any]) -> Space:
    """The space of `method`; every value a trial could take is checked against the method's own types and ranges.

    Raises:
        ValueError: names method, hyperparameter, what is wrong and what is allowed.
    """
    fixed: dict[str, Any] = {}
    domains: dict[str, Domain] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            domains[key] = _domain(f"methods.{method}.{key}", value)
        else:
            fixed[key] = value
    model = get_method(method).hyperparameters
    probes: list[dict[str, Any]] = [{}]
    probes += [{key: value} for key, domain in domains.items() for value in domain.probes()]
    base = fixed | {key: domain.values[0] for key, domain in domains.items()}
    for probe in probes:
        try:
            model.model_validate(base | probe)
        except ValidationError as error:
            location, message = describe_error(error, model)
            raise ValueError(f"{'.'.join(['methods', method, *location])}: {message}") from None
    return Space(method, fixed, domains)


def _domain(name: str, value: Mapping[str, Any]) -> Domain:
    if len(value) != 1 or next(iter(value)) not in DOMAINS:
        raise ValueError(f"{name}: a domain has exactly one key of {', '.join(DOMAINS)}, got {dict(value)}")
    kind, arguments = next(iter(value.items()))
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"{name}.{kind}: must be a non-empty list, got {arguments!r}")
    if kind in {"uniform", "loguniform"}:
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in arguments)
        if len(arguments) != 2 or not numbers or arguments[0] >= arguments[1]:
            raise ValueError(f"{name}.{kind}: must be [low, high] with low < high, got {arguments!r}")
        if kind == "loguniform" and arguments[0] <= 0:
            raise ValueError(f"{name}.{kind}: bounds must be above 0, got {arguments!r}")
    return Domain(kind, tuple(arguments))
