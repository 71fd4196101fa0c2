"""The configuration of a BeamLoRA adapter: PEFT's LoraConfig and the fields of the beam search."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from beamlora.layer import BeamLinear, refuse_layer
from beamlora.peft_support import register

# What a saved adapter calls itself: a PEFT that has not heard of beamlora refuses the adapter, instead of loading it
# as a LoRA without its scores.
PEFT_TYPE = "BEAMLORA"

# Options of LoraConfig that change what A and B mean, or that the exported plain adapter could not carry.
_INCOMPATIBLE = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "alora_invocation_tokens",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "loftq_config",
    "megatron_config",
    "target_parameters",
    "lora_bias",
)

_INITS = (True, False, "gaussian", "orthogonal")


def _option(default: Any, help: str, source: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "source": source, "choices": choices})


@dataclass
class BeamLoraConfig(LoraConfig):
    """Fields not listed here keep PEFT's meaning. Each field's metadata names the source of its default.

    Raises:
        ValueError: a value outside its range, or an option of LoraConfig that does not go with BeamLoRA.
    """

    p_init: float = _option(
        0.95,
        "Share of the total score that is left untouched at the start, in (0, 1]. At 1 no rank is operated.",
        "Table 4: 0.95 for math and code, 0.96 for commonsense",
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
        2 / 3, "Share of all steps that may operate, in (0, 1].", "reference: two of three epochs"
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_own_fields()
        self._check_base_fields()
        self._register_custom_module({nn.Linear: BeamLinear, Conv1D: BeamLinear, nn.Module: refuse_layer})

    def _check_own_fields(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            choices = option.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{option.name}={value!r}: must be one of {', '.join(map(repr, choices))}")
        for name in ("copy_moments", "expansion", "assessment", "history", "fused"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be true or false")
        if not (_is_number(self.p_init) and 0 < self.p_init <= 1):
            raise ValueError(f"p_init={self.p_init!r}: must be greater than 0 and at most 1")
        if not (_is_number(self.operate_until) and 0 < self.operate_until <= 1):
            raise ValueError(f"operate_until={self.operate_until!r}: must be greater than 0 and at most 1")
        whole = isinstance(self.interval, int) and self.interval >= 2
        fraction = isinstance(self.interval, float) and 0 < self.interval < 1
        if not (whole or fraction):
            raise ValueError(
                f"interval={self.interval!r}: must be a whole number of optimizer steps, at least 2, "
                "or a fraction of all steps between 0 and 1"
            )
        if self.temperature != "auto" and not (_is_number(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature!r}: must be 'auto' or greater than 0")

    def _check_base_fields(self) -> None:
        ranks = {"r": self.r} | {f"rank_pattern[{k!r}]": r for k, r in (self.rank_pattern or {}).items()}
        for name, r in ranks.items():
            if not isinstance(r, int) or r < 2:
                raise ValueError(
                    f"{name}={r!r}: must be a whole number, at least 2 (half of the ranks can be replaced)"
                )
        if self.init_lora_weights not in _INITS:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights!r}: must be True for BeamLoRA (Kaiming-uniform A, zero B), "
                "or another start that leaves the base weights alone: False, 'gaussian', 'orthogonal'"
            )
        if self.bias != "none":
            raise ValueError(f"bias={self.bias!r}: must be 'none' for BeamLoRA")
        for name in _INCOMPATIBLE:
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: cannot be combined with BeamLoRA, leave it unset")

    def to_dict(self) -> dict[str, Any]:
        """As saved in adapter_config.json, under a name of its own (see PEFT_TYPE)."""
        return super().to_dict() | {"peft_type": PEFT_TYPE}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> BeamLoraConfig:
        """Build from saved fields; PEFT's classmethod `from_pretrained` ends here.

        Raises:
            ValueError: another kind of adapter, or fields that this version does not know.
        """
        peft_type = kwargs.pop("peft_type", PEFT_TYPE)
        if peft_type != PEFT_TYPE:
            raise ValueError(
                f"this is a {peft_type} adapter, not {PEFT_TYPE}: load it with peft.PeftModel.from_pretrained"
            )
        unknown = kwargs.keys() - {option.name for option in fields(cls)}
        if unknown:
            raise ValueError(
                f"unknown fields in the adapter's configuration: {', '.join(sorted(unknown))} "
                "(saved by a newer version of peft or beamlora?)"
            )
        return cls(**kwargs)


register(PEFT_TYPE, BeamLoraConfig, BeamLinear.adopt)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
