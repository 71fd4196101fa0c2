"""Which configuration of a method is tried next: a function of its space and of what was tried before.

Nothing is remembered between two calls, so a sweep that was interrupted proposes what it would have proposed.
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
"""TPE's first points are random: a third of the budget, at most these (Optuna's own number)."""
_TRIES = 100


@dataclass(frozen=True)
class Tried:
    """A point that was tried, or is being tried.

    Attributes:
        state: unfit is a point that the method's own checks refuse.
        curve: (optimizer step, validation loss) as far as it came.
    """

    point: Point
    state: Literal["running", "trained", "stopped", "failed", "unfit"] = "running"
    curve: Sequence[tuple[int, float]] = ()


def listed_points(space: Space, search: SearchSection) -> Iterator[Point]:
    """The points in the order in which they are tried, where no result decides about them."""
    if search.algorithm == "grid":
        return space.grid(search.seed, search.grid_points)
    return space.random(search.seed)


def propose(space: Space, search: SearchSection, tried: Sequence[Tried]) -> Point | None:
    """The next point of `space` to try; None where there is none left."""
    known = [one.point for one in tried]
    if not search.proposes:
        return next((point for point in listed_points(space, search) if point not in known), None)
    if space.size is not None and all(point in known for point in space.grid(search.seed, search.grid_points)):
        return None
    return next(point for point in _by_tpe(space, search, tried) if point not in known)


def _by_tpe(space: Space, search: SearchSection, tried: Sequence[Tried]) -> Iterator[Point]:
    """Optuna's proposals one after the other; then, should they all repeat what was tried, random points.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization". Trials that were stopped take part with what
    they reached, which with Hyperband is the idea of BOHB (Falkner et al. 2018).
    """
    begun = sum(one.state != "unfit" for one in tried)  # which of those there were is not known after an interruption
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
    # multivariate: hyperparameters are modelled together; constant_liar: points that are being tried count as bad.
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
    for one in tried:
        parameters = {
            key: domain.values.index(one.point[key]) if domain.listed else one.point[key]
            for key, domain in space.domains.items()
        }
        curve = {step: loss for step, loss in one.curve if math.isfinite(loss)}
        finite = bool(curve) and math.isfinite(one.curve[-1][1])
        state = states[one.state] if finite or one.state in ("running", "unfit") else TrialState.FAIL
        study.add_trial(
            create_trial(
                state=state,
                value=one.curve[-1][1] if state == TrialState.COMPLETE else None,
                params=parameters,
                distributions=distributions,
                intermediate_values=curve,
            )
        )
    return study


def _distribution(domain: Domain) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if domain.listed:  # by place: a value may be a list
        return CategoricalDistribution(range(len(domain.values)))
    low, high = domain.values
    return FloatDistribution(low, high, log=domain.kind == "loguniform")
