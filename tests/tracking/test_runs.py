from __future__ import annotations

from beamplatform.tracking.runs import PARAM_LIMIT, flatten


def test_nested_parameters_become_dotted_names_with_json_values() -> None:
    nested = {
        "method": "lora",
        "training": {"learning_rate": 3e-4, "bf16": True, "schedule": {"warmup": None}},
        "target_modules": ["q_proj", "v_proj"],
    }
    assert flatten(nested) == {
        "method": "lora",
        "training.learning_rate": "0.0003",
        "training.bf16": "true",
        "training.schedule.warmup": "null",
        "target_modules": '["q_proj", "v_proj"]',
    }


def test_long_values_are_cut_visibly() -> None:
    exact, longer = "x" * PARAM_LIMIT, "x" * (PARAM_LIMIT + 1)
    assert flatten({"a": exact})["a"] == exact
    cut = flatten({"a": longer})["a"]
    assert len(cut) == PARAM_LIMIT and cut.endswith("x…")
