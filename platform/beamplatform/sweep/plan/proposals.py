"""Proposes the next configuration of a method from its search space and the points tried so far.

No state is kept between two calls, so a resumed sweep proposes the same points as an uninterrupted one.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from beamplatform.config.space import Domain, Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

    from beamplatform.config.sections import SearchSection

_STARTUP = 10
"""TPE starts with random points: a third of the trials, but at most this many (Optuna's default)."""
_TRIES = 100
"""After this many TPE proposals, random points are proposed instead."""


@dataclass(frozen=True)
class Tried:
    """A point that was tried, or is being tried.

    Attributes:
        state: the trial's state; "unfit" means that the method's own checks refuse the point.
        curve: (optimizer step, validation loss) pairs up to now.
    """

    point: Point
    state: Literal["running", "trained", "stopped", "failed", "unfit"] = "running"
    curve: Sequence[tuple[int, float]] = ()


def listed_points(space: Space, search: SearchSection) -> Iterator[Point]:
    """The points in the order in which they are tried, for a search that does not depend on results."""
    if search.algorithm == "grid":
        return space.grid(search.seed, search.grid_points)
    return space.random(search.seed)


def propose(space: Space, search: SearchSection, tried: Sequence[Tried]) -> Point | None:
    """Return the next point of `space` to try, or None if there is none left."""
    tried_points = [attempt.point for attempt in tried]
    if not search.proposes:
        return next((point for point in listed_points(space, search) if point not in tried_points), None)
    if space.size is not None and all(point in tried_points for point in space.grid(search.seed, search.grid_points)):
        return None
    return next(point for point in _by_tpe(space, search, tried) if point not in tried_points)


def _by_tpe(space: Space, search: SearchSection, tried: Sequence[Tried]) -> Iterator[Point]:
    """Yield Optuna's TPE proposals; after `_TRIES` of them, which may all repeat tried points, yield random points.

    TPE is from Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization". Stopped trials take part with the
    losses that they reached. Together with Hyperband this is the idea of BOHB (Falkner et al. 2018).
    """
    begun = sum(attempt.state != "unfit" for attempt in tried)  # an interrupted sweep does not remember unfit points
    seed = zlib.crc32(f"{search.seed} {space.method} {begun}".encode())
    study = _study(space, search, tried, seed)
    distributions = {key: _distribution(domain) for key, domain in space.domains.items()}
    for _ in range(_TRIES):
        drawn = study.ask(distributions).params
        yield {key: domain.values[drawn[key]] if domain.listed else drawn[key] for key, domain in space.domains.items()}
    yield from itertools.chain(space.random(seed))


def _study(space: Space, search: SearchSection, tried: Sequence[Tried], seed: int) -> Study:
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = min(_STARTUP, max(2, search.trials // 3))
    # multivariate: hyperparameters are modelled together. constant_liar: points that are being tried count as bad.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    states = {
        "running": TrialState.RUNNING,
        "trained": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "unfit": TrialState.FAIL,
    }
    distributions = {key: _distribution(domain) for key, domain in space.domains.items()}
    for attempt in tried:
        parameters = {
            key: domain.values.index(attempt.point[key]) if domain.listed else attempt.point[key]
            for key, domain in space.domains.items()
        }
        curve = {step: loss for step, loss in attempt.curve if math.isfinite(loss)}
        finite = bool(curve) and math.isfinite(attempt.curve[-1][1])
        state = states[attempt.state] if finite or attempt.state in ("running", "unfit") else TrialState.FAIL
        study.add_trial(
            create_trial(
                state=state,
                value=attempt.curve[-1][1] if state == TrialState.COMPLETE else None,
                params=parameters,
                distributions=distributions,
                intermediate_values=curve,
            )
        )
    return study


def _distribution(domain: Domain) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if domain.listed:  # by index, because a value may be a list
        return CategoricalDistribution(range(len(domain.values)))
    low, high = domain.values
    return FloatDistribution(low, high, log=domain.kind == "loguniform")
