"""BeamLoRA's options, declared once: the PEFT configuration and the platform's hyperparameters take them from here.

Neither torch nor PEFT is loaded for them.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal


def _option(
    default: Any, help: str, source: str, choices: tuple[Any, ...] = (), limits: dict[str, float] | None = None
) -> Any:
    """A field with its meaning, the source of its default, and what it may be.

    Args:
        default: used where none is given.
        help: what the option means.
        source: where the default comes from: the paper, the authors' code ("reference") or this project.
        choices: the values allowed beside numbers within the limits.
        limits: of a number: "gt" (greater than) and "le" (at most).
    """
    return field(default=default, metadata={"help": help, "source": source, "choices": choices, "limits": limits or {}})


@dataclass
class BeamOptions:
    """Options of the beam search and of layers with rank scores."""

    p_init: float = _option(
        0.95,
        "Share of the total score that is left untouched at the start, in (0, 1]. At 1 no rank is operated.",
        "Table 4: 0.95 for math and code, 0.96 for commonsense",
        limits={"gt": 0, "le": 1},
    )
    interval: int | float = _option(
        1000,
        "Optimizer steps between beam steps, at least 2; or a fraction of all steps, in (0, 1).",
        "Section A.2: 800 to 3500 by task; 1000 is among the values searched for code",
    )
    temperature: float | Literal["auto"] = _option(
        "auto",
        "Temperature of the softmax over scores. 'auto' is 0.05 for learning rates >= 1e-4, else 0.03; "
        "BeamSearch writes the resolved value here.",
        "reference",
        choices=("auto",),
        limits={"gt": 0},
    )
    score_scale: Literal["rank", "unit"] = _option(
        "rank",
        "Weights sum to r ('rank', training starts as plain LoRA) or to 1.",
        "reference; paper: unit",
        ("rank", "unit"),
    )
    threshold_horizon: Literal["window", "total"] = _option(
        "window",
        "Where the threshold reaches 1: at the end of the operating window or of the run.",
        "reference; paper: total",
        ("window", "total"),
    )
    threshold_schedule: Literal["cosine", "linear", "constant", "match_lr"] = _option(
        "cosine",
        "How the threshold rises. 'match_lr' follows the learning-rate schedule; 'constant' is the ablation without "
        "dynamic threshold.",
        "reference, also where the learning rate falls linearly; Section 3.3: match_lr",
        ("cosine", "linear", "constant", "match_lr"),
    )
    threshold_scope: Literal["global", "module"] = _option(
        "global",
        "Operated ranks are counted over all modules together or in each module.",
        "reference; paper: module",
        ("global", "module"),
    )
    threshold_crossing: Literal["greater", "greater_equal"] = _option(
        "greater",
        "The first operated rank is where the cumulative score is > or >= the threshold.",
        "reference; Eq. 13: greater_equal",
        ("greater", "greater_equal"),
    )
    operate_until: float = _option(
        2 / 3,
        "Share of all steps that may operate, in (0, 1].",
        "reference: two of three epochs",
        limits={"gt": 0, "le": 1},
    )
    copy_moments: bool = _option(True, "Children take their parents' optimizer moments.", "Eq. 12")
    reset_score_moments: Literal["all", "operated", False] = _option(
        "all",
        "Whose scores' moments are set to zero: of all modules, at every multiple of the interval with at least an "
        "interval left, also after the operating window; or of the modules that a beam step operates on; or none.",
        "reference",
        ("all", "operated", False),
    )
    expansion: bool = _option(True, "False: the ablation that only prunes.", "Table 3")
    assessment: bool = _option(True, "False: the ablation that draws pruned and expanded ranks at random.", "Table 3")
    history: bool = _option(True, "False: the ablation that copies current values, not the snapshot's.", "Eq. 9, 10")
    fused: bool = _option(
        True,
        "Adapted layers as one operation, those of one input together; False: the plain path, of the same numbers.",
        "ours: less time and memory",
    )
    snapshot_device: Literal["cpu", "parameter"] = _option(
        "cpu",
        "Where the snapshot is kept between half step and beam step.",
        "ours: the reference doubles the adapter's optimizer memory on the GPU",
        ("cpu", "parameter"),
    )

    def check_options(self) -> None:
        """Refuse what an option must not be.

        Raises:
            ValueError: names the option, its value and what would be right.
        """
        for option in fields(BeamOptions):
            value, choices, limits = (getattr(self, option.name), *_allowed(option))
            words = [*map(repr, choices)]
            if option.name == "interval":
                _check_interval(value)
            elif option.type == "bool":
                if not isinstance(value, bool):
                    raise ValueError(f"{option.name}={value!r}: must be true or false")
            elif limits:
                if value not in choices and not _is_within(value, limits):
                    least = " and ".join(f"{_WORDS[key]} {limit:g}" for key, limit in limits.items())
                    raise ValueError(f"{option.name}={value!r}: must be {' or '.join([*words, least])}")
            elif value not in choices:
                raise ValueError(f"{option.name}={value!r}: must be one of {', '.join(words)}")


_WORDS = {"gt": "greater than", "le": "at most"}


def _allowed(option: Field[Any]) -> tuple[tuple[Any, ...], dict[str, float]]:
    return option.metadata["choices"], option.metadata["limits"]


def _check_interval(value: object) -> None:
    if (isinstance(value, int) and value >= 2) or (isinstance(value, float) and 0 < value < 1):
        return
    raise ValueError(
        f"interval={value!r}: must be a whole number of optimizer steps, at least 2, "
        "or a fraction of all steps between 0 and 1"
    )


def _is_within(value: object, limits: dict[str, float]) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value > limits.get("gt", -math.inf) and value <= limits.get("le", math.inf)
