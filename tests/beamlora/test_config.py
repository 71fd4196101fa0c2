"""Every wrong value is refused with its name, its value and what is allowed."""

from __future__ import annotations

from dataclasses import fields

import pytest
from peft import LoraConfig

from beamlora import BeamLoraConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_init": 0.0}, r"p_init=0\.0: must be greater than 0 and at most 1"),
        ({"p_init": 1.01}, r"p_init=1\.01"),
        ({"p_init": "high"}, "p_init='high'"),
        ({"interval": 1}, "interval=1: must be a whole number of optimizer steps, at least 2, or a fraction"),
        ({"interval": 1.5}, r"interval=1\.5"),
        ({"interval": True}, "interval=True"),
        ({"temperature": 0}, "temperature=0: must be 'auto' or greater than 0"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"operate_until": 0.0}, r"operate_until=0\.0"),
        ({"operate_until": 1.5}, r"operate_until=1\.5"),
        ({"score_scale": "sum"}, "score_scale='sum': must be one of 'rank', 'unit'"),
        ({"threshold_horizon": "epoch"}, "threshold_horizon='epoch': must be one of 'window', 'total'"),
        ({"reset_score_moments": True}, "reset_score_moments=True: must be one of 'all', 'operated', False"),
        ({"threshold_schedule": "step"}, "threshold_schedule='step'"),
        ({"threshold_scope": "layer"}, "threshold_scope='layer'"),
        ({"threshold_crossing": ">"}, "threshold_crossing='>'"),
        ({"snapshot_device": "disk"}, "snapshot_device='disk'"),
        ({"expansion": "no"}, "expansion='no': must be true or false"),
        ({"r": 1}, "r=1: must be a whole number, at least 2"),
        ({"rank_pattern": {"q_proj": 1}}, r"rank_pattern\['q_proj'\]=1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': must be True"),
        ({"bias": "all"}, "bias='all': must be 'none'"),
        ({"lora_bias": True}, "lora_bias=True: cannot be combined with BeamLoRA"),
        ({"use_dora": True}, "use_dora=True: cannot be combined with BeamLoRA"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
    ],
)
def test_wrong_value_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeamLoraConfig(**options)


def test_limits_are_allowed() -> None:
    BeamLoraConfig(p_init=1, interval=2, operate_until=1, r=2, temperature=0.03)
    BeamLoraConfig(interval=0.05)


def test_every_own_field_says_what_it_is_and_where_its_default_comes_from() -> None:
    inherited = {option.name for option in fields(LoraConfig)}
    own = [option for option in fields(BeamLoraConfig) if option.name not in inherited]
    assert len(own) == 16
    assert all(option.metadata["help"] and option.metadata["source"] for option in own)


def test_saved_and_loaded_config_is_equal(tmp_path) -> None:
    config = BeamLoraConfig(r=4, p_init=0.9, interval=0.1, threshold_scope="module", target_modules=["q_proj"])
    config.save_pretrained(tmp_path)
    assert BeamLoraConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_other_adapters_and_unknown_fields_are_refused(tmp_path) -> None:
    LoraConfig(r=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this is a LORA adapter"):
        BeamLoraConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown fields in the adapter's configuration: beam_width"):
        BeamLoraConfig.from_peft_type(peft_type="BEAMLORA", beam_width=3)
