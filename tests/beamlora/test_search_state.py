"""Saving a search and going on from it."""

from __future__ import annotations

import pytest
import torch
from search_runs import start, train


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 7, 8, 16, 20])
def test_resumed_run_is_the_uninterrupted_one_bitwise(tiny_net, tmp_path, stop: int) -> None:
    model = tiny_net()
    optimizer, search = start(model, seed=3)
    for _ in train(model, optimizer, search, range(1, stop + 1)):
        pass
    search.save_state(tmp_path)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {"state": {}, **optimizer.state_dict()}

    resumed = tiny_net()
    resumed.load_state_dict(weights)
    resumed_optimizer, resumed_search = start(resumed, seed=3)
    resumed_optimizer.load_state_dict(torch.load(_saved(moments, tmp_path), weights_only=True))
    resumed_search.load_state(tmp_path)
    runs = [
        [(report, after) for _, _, report, after in train(*run, range(stop + 1, 31))]
        for run in ((model, optimizer, search), (resumed, resumed_optimizer, resumed_search))
    ]
    for (report, state), (resumed_report, resumed_state) in zip(*runs, strict=True):
        assert report == resumed_report
        assert all(torch.equal(state[name], resumed_state[name]) for name in state)


def _saved(state: dict, folder) -> str:
    torch.save(state, folder / "optimizer.pt")
    return folder / "optimizer.pt"


def test_state_of_another_run_is_refused(tiny_net, tmp_path) -> None:
    model = tiny_net()
    optimizer, search = start(model)
    for _ in train(model, optimizer, search, range(1, 4)):
        pass
    state = search.state_dict()
    with pytest.raises(ValueError, match="the saved beam search has total_steps=30, this run has total_steps=40"):
        start(tiny_net(), total_steps=40)[1].load_state_dict(state)
    with pytest.raises(ValueError, match=r"has p_init=0\.5, this run has p_init=0\.6"):
        start(tiny_net(p_init=0.6))[1].load_state_dict(state)
    with pytest.raises(ValueError, match="has seed=0, this run has seed=1"):
        start(tiny_net(), seed=1)[1].load_state_dict(state)
    with pytest.raises(ValueError, match="lacks the snapshot of 0, 2"):
        start(tiny_net())[1].load_state_dict(state | {"snapshot": {}})
    with pytest.raises(ValueError, match="snapshot of 0/a has 60 values, this layer 48"):
        start(tiny_net(r=4))[1].load_state_dict(state)
    with pytest.raises(ValueError, match="layers that this model has not: 2"):
        start(tiny_net(target_modules=["0"]))[1].load_state_dict(state)
    start(tiny_net(snapshot_device="parameter"))[1].load_state_dict(state)  # changes no number

    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="does not hold the whole state of a beam search"):
        search.load_state(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "beam_search-00000-of-00001.safetensors")
    with pytest.raises(ValueError, match="does not hold the state of a beam search"):
        search.load_state(tmp_path)


def test_state_survives_further_training(tiny_net) -> None:
    model = tiny_net()
    optimizer, search = start(model)
    for _ in train(model, optimizer, search, range(1, 4)):
        pass
    state = search.state_dict()
    copies = {name: tensor.clone() for name, (_, tensor) in state["snapshot"].items()}
    for _ in train(model, optimizer, search, range(4, 9)):
        pass
    assert all(torch.equal(copies[name], tensor) for name, (_, tensor) in state["snapshot"].items())
