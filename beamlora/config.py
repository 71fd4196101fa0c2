"""The configuration of a BeamLoRA adapter: PEFT's LoraConfig and the fields of the beam search."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from beamlora.layer import BeamLinear, refuse_layer
from beamlora.options import BeamOptions
from beamlora.peft_support import register

# The peft_type in a saved adapter's configuration. It differs from LoRA's, so that PEFT without beamlora refuses the
# adapter instead of loading it as a LoRA adapter without its scores.
PEFT_TYPE = "BEAMLORA"

# Options of LoraConfig that change the meaning of A and B, or that the exported LoRA adapter could not express.
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


@dataclass
class BeamLoraConfig(BeamOptions, LoraConfig):
    """PEFT's LoraConfig with the fields of `BeamOptions`.

    The metadata of each field in `BeamOptions` explain it and name the source of its default.

    Raises:
        ValueError: a value is outside its range, or an option of LoraConfig cannot be combined with BeamLoRA.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()
        self._check_base_fields()
        self._register_custom_module({nn.Linear: BeamLinear, Conv1D: BeamLinear, nn.Module: refuse_layer})

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
        """Return the fields that PEFT writes to adapter_config.json, with `PEFT_TYPE` as peft_type."""
        return super().to_dict() | {"peft_type": PEFT_TYPE}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> BeamLoraConfig:
        """Build a configuration from saved fields. PEFT's `from_pretrained` calls this.

        Raises:
            ValueError: the fields describe another kind of adapter, or contain names that this version does not know.
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
