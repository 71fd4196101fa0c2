"""Search spaces: each hyperparameter is a value, or one of Ray Tune's domains written as a mapping with one key.

r: 32                                  a fixed value
r: {grid: [16, 32]}                    every value in turn, crossed with the other grids
r: {choice: [16, 32, 64]}              drawn, each equally likely
p_init: {uniform: [0.9, 0.99]}         drawn between two bounds
learning_rate: {loguniform: [1e-4, 1e-3]}
"""

from __future__ import annotations

import itertools
import math
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from beamplatform.errors import UserError, shortened
from beamplatform.methods import get_method
from beamplatform.validation import describe_error

if TYPE_CHECKING:
    from numpy.random import RandomState

DOMAINS = ("grid", "choice", "uniform", "loguniform")
_MOST_CORNERS = 256
_LARGEST_GRID = 10**6

Point = dict[str, Any]
"""Searched hyperparameter -> its value."""


@dataclass(frozen=True)
class Domain:
    """One searched hyperparameter: `kind` is one of DOMAINS, `values` its choices or its two bounds."""

    kind: str
    values: tuple[Any, ...]

    def probes(self) -> tuple[Any, ...]:
        """Return values that represent the whole domain: every choice, or both bounds and a value between them."""
        if self.listed:
            return self.values
        low, high = self.values
        return (low, high, low + (high - low) / math.pi)

    @property
    def listed(self) -> bool:
        """Whether the domain is a list of values, and not an interval."""
        return self.kind in {"grid", "choice"}

    def contains(self, value: Any) -> bool:
        """Whether the value is one of the choices, or lies between the bounds."""
        if self.listed:
            return value in self.values
        return isinstance(value, (int, float)) and self.values[0] <= value <= self.values[1]

    def levels(self, count: int) -> tuple[Any, ...]:
        """Return every value of a list, or `count` evenly spread values of an interval, including both bounds.

        For loguniform they are evenly spread on a log scale. Values of an interval are rounded to 6 digits.
        """
        if self.listed:
            return self.values
        low, high = self.values
        shares = [number / (count - 1) for number in range(count)]
        if self.kind == "loguniform":
            spread = [low * (high / low) ** share for share in shares]
        else:
            spread = [low + (high - low) * share for share in shares]
        return tuple(min(max(float(f"{value:.6g}"), low), high) for value in spread)

    def draw(self, random_state: RandomState) -> Any:
        """Draw one value with the Ray Tune domain of the same name (grids are not drawn)."""
        from ray import tune  # slow to import, and not needed to check a suite

        domain = tune.choice(list(self.values)) if self.kind == "choice" else getattr(tune, self.kind)(*self.values)
        value = domain.sample(random_state=random_state)
        return value.item() if hasattr(value, "item") else value  # NumPy's numbers are not JSON values


@dataclass(frozen=True)
class Space:
    """The hyperparameters of one method: fixed values and domains."""

    method: str
    fixed: Mapping[str, Any]
    domains: Mapping[str, Domain]

    @property
    def size(self) -> int | None:
        """Number of points in the space; None if a domain is an interval."""
        if not all(domain.listed for domain in self.domains.values()):
            return None
        return math.prod(len(domain.values) for domain in self.domains.values())

    def contains(self, point: Point) -> bool:
        """Whether the point lies in this space."""
        return point.keys() == self.domains.keys() and all(self.domains[key].contains(point[key]) for key in point)

    def resolve(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return all hyperparameters of the method at a point, as plain JSON values.

        Defaults are written out, so that a trial stays the same when a later version changes a default.
        """
        values = dict(self.fixed) | dict(point)
        return get_method(self.method).hyperparameters.model_validate(values).model_dump(mode="json")

    def random(self, seed: int) -> Iterator[Point]:
        """Yield points without repeats, the same for the same seed, until the space has no more.

        The combinations of the grids come in turn, in a fixed random order. The other domains are drawn for each point.
        """
        from numpy.random import RandomState

        # Every method has a random stream of its own, so that adding a method does not change what the others draw.
        generator = RandomState([seed, zlib.crc32(self.method.encode())])
        grids = {key: domain.values for key, domain in self.domains.items() if domain.kind == "grid"}
        drawn = {key: domain for key, domain in self.domains.items() if domain.kind != "grid"}
        crossed = self._crossed(grids.values())
        order = [crossed[index] for index in generator.permutation(len(crossed))]
        seen: list[Point] = []
        size = self.size
        for values in itertools.cycle(order):
            if len(seen) == size:
                return
            point = dict(zip(grids, values, strict=True))
            point |= {key: domain.draw(generator) for key, domain in drawn.items()}
            if point not in seen:
                seen.append(point)
                yield point

    def grid(self, seed: int, points: int) -> Iterator[Point]:
        """Yield every combination of the domains' levels (`Domain.levels`) in a random order.

        Because of the order, the first points are a random sample.

        Raises:
            UserError: there are too many combinations to list.
        """
        from numpy.random import RandomState

        crossed = self._crossed([domain.levels(points) for domain in self.domains.values()])
        generator = RandomState([seed, zlib.crc32(self.method.encode())])
        for index in generator.permutation(len(crossed)):
            yield dict(zip(self.domains, crossed[index], strict=True))

    def _crossed(self, lists: Collection[Sequence[Any]]) -> list[tuple[Any, ...]]:
        if (size := math.prod(map(len, lists))) > _LARGEST_GRID:
            raise UserError(
                f"the grid of {self.method} has {size} points, and {_LARGEST_GRID} at most can be listed; lower "
                "search.grid_points, search fewer hyperparameters, or choose another search.algorithm"
            )
        return list(itertools.product(*lists))

    def corners(self) -> list[Point]:
        """Return points that represent the whole space in what its trials need, such as memory; at most 256.

        They combine the ends of every numeric domain with all values of every other domain.
        """
        ends = []
        for domain in self.domains.values():
            numeric = all(isinstance(value, (int, float)) for value in domain.values)
            ends.append(sorted({min(domain.values), max(domain.values)}) if numeric else list(domain.values))
        crossed = itertools.islice(itertools.product(*ends), _MOST_CORNERS)
        return [dict(zip(self.domains, values, strict=True)) for values in crossed]


def parse_space(method: str, values: Mapping[str, Any]) -> Space:
    """Return the space of `method`, after checking its values against the method's own types and ranges.

    Raises:
        ValueError: a value is wrong; the message names the method, the hyperparameter and what is allowed.
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
        raise ValueError(
            f"{name}: a domain has exactly one key of {', '.join(DOMAINS)}, got {shortened(repr(dict(value)))}"
        )
    kind, arguments = next(iter(value.items()))
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"{name}.{kind}: must be a non-empty list, got {shortened(repr(arguments))}")
    if any(arguments.count(value) > 1 for value in arguments):
        raise ValueError(f"{name}.{kind}: values must differ, got {shortened(repr(arguments))}")
    if kind in {"uniform", "loguniform"}:
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in arguments)
        if numbers and not all(abs(v) <= sys.float_info.max for v in arguments):
            raise ValueError(f"{name}.{kind}: bounds must be finite numbers, got {[str(v)[:20] for v in arguments]}")
        if len(arguments) != 2 or not numbers or arguments[0] >= arguments[1]:
            raise ValueError(f"{name}.{kind}: must be [low, high] with low < high, got {shortened(repr(arguments))}")
        if kind == "loguniform" and arguments[0] <= 0:
            raise ValueError(f"{name}.{kind}: bounds must be above 0, got {arguments!r}")
    return Domain(kind, tuple(arguments))
