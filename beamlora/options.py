"""BeamLoRA's options, declared once for both the PEFT configuration and the platform's hyperparameters.

Importing this module loads neither torch nor PEFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal


def _option(
    default: Any, help: str, source: str, choices: tuple[Any, ...] = (), limits: dict[str, float] | None = None
) -> Any:
    """Return a dataclass field whose metadata hold its meaning, the source of its default and its allowed values.

    Args:
        default: the default value.
        help: what the option means.
        source: where the default comes from: the paper, the authors' code ("reference") or this project.
        choices: the allowed values. If there are limits, numbers within them are also allowed.
        limits: the bounds of a number: "gt" (greater than) and "le" (at most).
    """
    return field(default=default, metadata={"help": help, "source": source, "choices": choices, "limits": limits or {}})


@dataclass
class BeamOptions:
    """Options of the beam search and of layers with rank scores."""

    p_init: float = _option(
        0.95,
        help="Share of the total score that a beam step leaves untouched at the start, in (0, 1]. "
        "At 1 no rank is replaced.",
        source="Table 4: 0.95 for math and code, 0.96 for commonsense",
        limits={"gt": 0, "le": 1},
    )
    interval: int | float = _option(
        1000,
        help="Optimizer steps between beam steps, at least 2; or a fraction of all steps, in (0, 1).",
        source="Section A.2: 800 to 3500 by task; 1000 is among the values searched for code",
    )
    temperature: float | Literal["auto"] = _option(
        "auto",
        help="Temperature of the softmax over scores. 'auto' is 0.05 for learning rates >= 1e-4, else 0.03; "
        "BeamSearch writes the resolved value here.",
        source="reference",
        choices=("auto",),
        limits={"gt": 0},
    )
    score_scale: Literal["rank", "unit"] = _option(
        "rank",
        help="Whether the rank weights of a layer sum to r ('rank': training starts as plain LoRA) or to 1 ('unit').",
        source="reference; paper: unit",
        choices=("rank", "unit"),
    )
    threshold_horizon: Literal["window", "total"] = _option(
        "window",
        help="Where the threshold reaches 1: at the end of the operating window or of the run.",
        source="reference; paper: total",
        choices=("window", "total"),
    )
    threshold_schedule: Literal["cosine", "linear", "constant", "match_lr"] = _option(
        "cosine",
        help="How the threshold rises. 'match_lr' follows the learning-rate schedule; 'constant' is the ablation "
        "without dynamic threshold.",
        source="reference, also where the learning rate falls linearly; Section 3.3: match_lr",
        choices=("cosine", "linear", "constant", "match_lr"),
    )
    threshold_scope: Literal["global", "module"] = _option(
        "global",
        help="Whether the ranks to replace are counted over all modules together ('global') or in each "
        "module ('module').",
        source="reference; paper: module",
        choices=("global", "module"),
    )
    threshold_crossing: Literal["greater", "greater_equal"] = _option(
        "greater",
        help="Whether the first replaced rank is the one whose cumulative score is > or >= the threshold.",
        source="reference; Eq. 13: greater_equal",
        choices=("greater", "greater_equal"),
    )
    operate_until: float = _option(
        2 / 3,
        help="Share of all steps, from the start of the run, in which beam steps may happen; in (0, 1].",
        source="reference: two of three epochs",
        limits={"gt": 0, "le": 1},
    )
    copy_moments: bool = _option(True, help="Children take their parents' optimizer moments.", source="Eq. 12")
    reset_score_moments: Literal["all", "operated", False] = _option(
        "all",
        help="Which modules have the optimizer moments of their scores reset to zero. 'all': all modules, at every "
        "multiple of the interval with at least one interval left, also after the operating window; "
        "'operated': the modules in which a beam step replaces ranks; false: none.",
        source="reference",
        choices=("all", "operated", False),
    )
    expansion: bool = _option(True, help="False: the ablation that only prunes.", source="Table 3")
    assessment: bool = _option(
        True, help="False: the ablation that draws pruned and expanded ranks at random.", source="Table 3"
    )
    history: bool = _option(
        True, help="False: the ablation that copies current values, not the snapshot's.", source="Eq. 9, 10"
    )
    fused: bool = _option(
        True,
        help="Compute each adapted layer as one fused operation. False: the plain path, with the same results.",
        source="ours: less time and memory",
    )
    snapshot_device: Literal["cpu", "parameter"] = _option(
        "cpu",
        help="Where the snapshot is kept until the beam step: on the CPU, or on the device of the optimizer's weights.",
        source="ours: the reference doubles the adapter's optimizer memory on the GPU",
        choices=("cpu", "parameter"),
    )

    def check_options(self) -> None:
        """Check the value of every option.

        Raises:
            ValueError: an option has an invalid value; the message names the option, its value and the allowed values.
        """
        for option in fields(BeamOptions):
            value = getattr(self, option.name)
            choices, limits = option.metadata["choices"], option.metadata["limits"]
            words = [*map(repr, choices)]
            if option.name == "interval":
                _check_interval(value)
            elif option.type == "bool":
                if not isinstance(value, bool):
                    raise ValueError(f"{option.name}={value!r}: must be true or false")
            elif limits:
                if value not in choices and not _is_within(value, limits):
                    bounds = " and ".join(f"{_WORDS[key]} {limit:g}" for key, limit in limits.items())
                    raise ValueError(f"{option.name}={value!r}: must be {' or '.join([*words, bounds])}")
            elif value not in choices:
                raise ValueError(f"{option.name}={value!r}: must be one of {', '.join(words)}")


_WORDS = {"gt": "greater than", "le": "at most"}


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
