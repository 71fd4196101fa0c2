"""What a sweep was started as is found again; a damaged file is named and keeps no other sweep from going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from beamplatform.config.suite import load_preset
from beamplatform.errors import UserError
from beamplatform.sweep.plan.ledger import load_ledger
from beamplatform.sweep.plan.saved_sweep import SavedSweep, find_sweep


@pytest.fixture
def storage(root: Path, tmp_path: Path) -> str:
    """With a sweep `good`, and one whose file is cut off."""
    _, _, preset = load_preset(root / "tune_spaces" / "commonsense.yaml", "tiny", has_gpu=False)
    for name in ("good", "cut"):
        SavedSweep(name, "commonsense", "tiny", preset.model_dump(mode="json"), ["lora"], 1.0).save(str(tmp_path))
    file = tmp_path / "cut" / "sweep.json"
    file.write_text(file.read_text()[:100])
    return str(tmp_path)


def test_a_damaged_sweep(storage: str) -> None:
    assert find_sweep(storage, "commonsense", None).name == "good"
    assert find_sweep(storage, "commonsense", "good").resolved().search.seeds == (0, 1)
    with pytest.raises(UserError, match=r"cut/sweep.json: is damaged \(.*\); bring back a copy"):
        find_sweep(storage, "commonsense", "cut")


@pytest.mark.parametrize("content", ["[", "[" * 100_000, "[3]", '[{"trial": 3, "curve": []}]', "{}3"])
def test_a_damaged_ledger(storage: str, content: str) -> None:
    assert load_ledger(storage, "good") == []
    (Path(storage) / "good" / "ledger.json").write_text(content)
    with pytest.raises(UserError, match=r"good/ledger.json: is damaged"):
        load_ledger(storage, "good")


def test_a_value_that_is_refused_now(storage: str) -> None:
    saved = find_sweep(storage, "commonsense", "good")
    saved.preset["search"]["seeds"] = [-1]
    with pytest.raises(UserError, match=r"the sweep good has the value search.seeds.0, which this version refuses"):
        saved.resolved()


def test_a_sweep_nested_too_deep(storage: str) -> None:
    folder = Path(storage) / "deep"
    folder.mkdir()
    (folder / "sweep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is damaged"):
        find_sweep(storage, "commonsense", "deep")
