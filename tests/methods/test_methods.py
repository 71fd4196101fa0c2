"""Methods are found by name, and refuse runs in which they could not do their work."""

from __future__ import annotations

import itertools

import pytest

from beamplatform.config.suite import load_preset
from beamplatform.config.trial import make_trial
from beamplatform.errors import UserError
from beamplatform.methods import METHODS, get_method

SETTING = {"training__max_steps": 20}


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("beamlora", {"interval": 15}, "interval=15: no beam step can happen in 20 steps"),
        ("adalora", {"delta_t": 50}, "no budget update fits between step 2 .* and step 14"),
        ("relora", {"cycle": 20}, "no merge can happen: a cycle of 20 steps does not fit twice into 20"),
        ("relora", {"cycle": 6}, "20 steps are not a multiple of a cycle of 6.*: 2, 4, 5"),
        ("relora", {"cycle": 0.3}, "must be a multiple of it: 0.5, 0.25"),
        ("relora", {"cycle": 5, "first_warmup": 5}, "first_warmup of 5 steps takes up the whole cycle of 5"),
        ("relora", {"cycle": 5, "restart_warmup": 0.3}, "restart_warmup of 6 steps takes up the whole cycle of 5"),
    ],
)
def test_a_schedule_that_never_fires_is_refused(method: str, changes, message: str, trial) -> None:
    values = {"relora": {"first_warmup": 2, "restart_warmup": 2}}.get(method, {}) | changes
    wanted = trial(method, **SETTING | {f"methods__{method}__{key}": value for key, value in values.items()})
    with pytest.raises(ValueError, match=message):
        wanted.make_method(1000)


def test_increloras_target_must_be_reached_by_all_its_modules(trial) -> None:
    wanted = trial("increlora", **SETTING, methods__increlora__ranks_per_growth=1, methods__increlora__top_h=2)
    shapes = {f"layer{i}": (64, 64) for i in range(10)}
    with pytest.raises(ValueError, match=r"only 36 of 80 ranks \(8 for each of 10 modules\).*top_h = 6 would do"):
        wanted.make_method(1000).check_layers(shapes)


@pytest.mark.parametrize(("method", "allowed"), [("lora", 64), ("adalora", 43), ("increlora", 16)])
def test_ranks_beyond_a_layers_smaller_side_are_refused(method: str, allowed: int, trial) -> None:
    shapes = {"wide": (256, 128), "narrow": (64, 128)}
    setting = SETTING | {"methods__adalora__delta_t": 1, "methods__increlora__ranks_per_growth": None}
    trial(method, **setting, shared__r=allowed).make_method(1000).check_layers(shapes)
    above = trial(method, **setting, shared__r=allowed + 1)
    with pytest.raises(ValueError, match=r"rank \d+ is larger than the smaller side of layer narrow \[64, 128\]"):
        above.make_method(1000).check_layers(shapes)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown method 'lorra'; allowed: beamlora, full, lora, dora, pissa"):
        get_method("lorra")


STEPS = {"commonsense": 169_420, "math": 394_000, "code": 103_848}
"""Training examples of the published data sets, less the 1000 of validation."""


@pytest.mark.parametrize(
    ("suite", "preset"), [*((suite, "paper") for suite in STEPS), ("math", "mistral"), ("code", "mistral")]
)
def test_every_configuration_of_the_paper_presets_can_do_its_work(suite: str, preset: str, root) -> None:
    """On the shapes of LLaMA2-7B and Mistral-7B: nothing that could be drawn is refused after hours in a queue."""
    path = root / "tune_spaces" / f"{suite}.yaml"
    name, _, found = load_preset(path, preset, has_gpu=True)
    keys = 1024 if preset == "mistral" else 4096
    wide = 14336 if preset == "mistral" else 11008
    block = {"q_proj": (4096, 4096), "k_proj": (keys, 4096), "v_proj": (keys, 4096), "o_proj": (4096, 4096)}
    block |= {"gate_proj": (wide, 4096), "up_proj": (wide, 4096), "down_proj": (4096, wide)}
    assert list(found.methods) and set(found.methods) == set(METHODS)
    points = [
        (method, space.resolve(point))
        for method, space in ((method, found.space(method)) for method in found.methods)
        for point in [*space.corners(), *itertools.islice(space.random(0), 40)]
    ]
    for name_of_method, point in points:
        wanted = make_trial(name.name, preset, found, name_of_method, point, 0)
        method = wanted.make_method(STEPS[suite])
        targets = getattr(method.values, "target_modules", "all-linear")
        chosen = block if targets == "all-linear" else {key: block[key] for key in targets}
        method.check_layers({f"{i}.{key}": shape for i in range(32) for key, shape in chosen.items()})
