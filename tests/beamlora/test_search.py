"""The search over a run: when it looks, when it operates, what the run has afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from peft import get_peft_model
from search_runs import ADAMW, start, train
from torch import Tensor, nn

from beamlora import BeamLoraConfig, BeamReport, BeamSearch, get_beamlora_model
from beamlora.layer import BeamLinear


def key(layer: str, kind: str, entry: str = "") -> str:
    return f"base_model.model.{layer}.lora_{kind}.default.weight" + (f"/{entry}" if entry else "")


def rank(state: dict[str, Tensor], layer: str, i: int, entry: str = "") -> tuple[Tensor, Tensor]:
    return state[key(layer, "A", entry)][i], state[key(layer, "B", entry)][:, i]


def equal(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


ENTRIES = ("", "exp_avg", "exp_avg_sq")


@pytest.mark.parametrize("interval", [4, 5])
def test_whole_run(tiny_net: Callable[..., nn.Module], interval: int) -> None:
    model = tiny_net(interval=interval)
    optimizer, search = start(model)
    assert search.planned_steps == tuple(range(interval, 20, interval))
    states, reports = {}, []
    for step, before, report, after in train(model, optimizer, search, range(1, 31)):
        states[step] = before
        assert (report is not None) == (step in search.planned_steps)
        if report is None:
            reset = score_moments(before) if step in (*range(interval, 30 - interval + 1, interval),) else set()
            assert all(not after[name].any() for name in reset)
            assert all(torch.equal(before[name], after[name]) for name in before.keys() - reset)
            continue
        reports.append(report)
        snapshot = states[step - interval + interval // 2]
        check_beam_step(report, before, after, snapshot)
    assert sum(report.operated_ranks for report in reports) >= 10
    assert {layer for report in reports for layer in report.operated} == {"0", "2"}


def check_beam_step(report: BeamReport, before, after, snapshot) -> None:
    for layer, pairs in report.operated.items():
        pruned, parents = {i for i, _ in pairs}, {j for _, j in pairs}
        assert not pruned & parents
        scores = before[key(layer, "beam")]
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        assert pruned == set(order[-len(pairs) :]) and parents == set(order[: len(pairs)])
        for child, parent in pairs:
            for entry in ENTRIES:
                assert equal(rank(after, layer, child, entry), rank(snapshot, layer, parent, entry))
                assert not equal(rank(after, layer, child, entry), rank(before, layer, parent, entry))
            mean = (scores[child] + scores[parent]) / 2
            assert after[key(layer, "beam")][[child, parent]].tolist() == [mean.item()] * 2
        for entry in ENTRIES:
            for i in set(range(len(scores))) - pruned:
                assert equal(rank(after, layer, i, entry), rank(before, layer, i, entry))
        untouched = [i for i in range(len(scores)) if i not in pruned | parents]
        assert torch.equal(after[key(layer, "beam")][untouched], scores[untouched])
        for kind in ("A", "B", "beam"):
            assert torch.equal(after[key(layer, kind, "step")], before[key(layer, kind, "step")])
    assert all(not after[name].any() for name in score_moments(after))


def score_moments(state: dict[str, Tensor]) -> set[str]:
    """The names of the scores' moments, of every module."""
    return {name for name in state if "lora_beam" in name and name.endswith(("exp_avg", "exp_avg_sq"))}


def first_beam_step(model: nn.Module, **options: object):
    optimizer, search = start(model, **options)
    history = {}
    for step, before, report, after in train(model, optimizer, search, range(1, 31)):
        history[step] = before
        if report is not None:
            return report, history, before, after
    raise AssertionError("no beam step")


def each_pair(report: BeamReport) -> Iterator[tuple[str, int, int]]:
    assert report.operated_ranks > 0
    for layer, pairs in report.operated.items():
        for child, parent in pairs:
            yield layer, child, parent


def test_option_keep_moments(tiny_net) -> None:
    report, history, before, after = first_beam_step(tiny_net(copy_moments=False))
    for layer, child, parent in each_pair(report):
        assert equal(rank(after, layer, child), rank(history[2], layer, parent))
        for entry in ENTRIES[1:]:
            assert equal(rank(after, layer, child, entry), rank(before, layer, child, entry))


@pytest.mark.parametrize("expansion", [True, False])
@pytest.mark.parametrize("option", ["all", "operated", False])
def test_whose_score_moments_are_reset(option: str | bool, expansion: bool, tiny_net) -> None:
    """All modules' at every multiple of the interval with an interval left, or those of the modules operated on."""
    pooled = {"r": 4, "p_init": 0.95, "threshold_scope": "global", "threshold_schedule": "constant"}
    model = tiny_net(**pooled, operate_until=0.5, reset_score_moments=option, expansion=expansion)
    dict(model.named_parameters())[key("2", "beam")].data = torch.tensor([0.05, 0.05, -0.05, -0.05])
    optimizer, search = start(model, lr=1e-3)
    seen = set()
    for step, before, report, after in train(model, optimizer, search, range(1, 31)):
        names = score_moments(before)
        layers = {"all": {"0", "2"} if step in (4, 8, 12, 16, 20, 24) else set(), False: set()}
        layers["operated"] = set(report.operated) if report else set()
        for name in names:
            reset = name.split(".")[2] in layers[option]
            assert torch.equal(after[name], torch.zeros_like(after[name]) if reset else before[name])
            assert before[name].any() or step < 3
            seen.add((report is not None, len(report.operated) if report else None, reset))
    assert (True, 1, option == "all") in seen, "a beam step that leaves a module alone"
    assert (False, None, option == "all") in seen, "after the operating window, too"


def test_option_keep_score_moments(tiny_net) -> None:
    report, _, before, after = first_beam_step(tiny_net(reset_score_moments=False))
    for layer, _, _ in each_pair(report):
        for entry in ENTRIES[1:]:
            assert torch.equal(after[key(layer, "beam", entry)], before[key(layer, "beam", entry)])


def test_ablation_without_expansion(tiny_net) -> None:
    report, _, before, after = first_beam_step(tiny_net(expansion=False))
    for layer, child, _ in each_pair(report):
        for entry in ENTRIES:
            assert not any(tensor.any() for tensor in rank(after, layer, child, entry))
    for layer in ("0", "2"):
        assert torch.equal(after[key(layer, "beam")], before[key(layer, "beam")])


def test_ablation_without_history(tiny_net) -> None:
    report, _, before, after = first_beam_step(tiny_net(history=False))
    for layer, child, parent in each_pair(report):
        for entry in ENTRIES:
            assert equal(rank(after, layer, child, entry), rank(before, layer, parent, entry))


def test_ablation_without_assessment(tiny_net) -> None:
    options = {"r": 7, "threshold_scope": "module", "threshold_schedule": "constant"}
    assessed, _, _, _ = first_beam_step(tiny_net(**options))
    drawn = [first_beam_step(tiny_net(**options, assessment=False), seed=seed)[0] for seed in range(3)]
    assert all(report.operated_ranks == assessed.operated_ranks for report in drawn)
    assert len({str(report.operated) for report in [assessed, *drawn]}) == 4


def test_ablation_without_dynamic_threshold(tiny_net) -> None:
    model = tiny_net(threshold_schedule="constant", operate_until=0.8)
    optimizer, search = start(model)
    reports = [report for _, _, report, _ in train(model, optimizer, search, range(1, 31)) if report]
    assert [(report.step, report.threshold) for report in reports] == [(t, 0.5) for t in (4, 8, 12, 16, 20, 24)]


@pytest.mark.parametrize(
    ("scope", "crossing", "counts"),
    [
        ("module", "greater", {"0": 1, "2": 1}),  # sums 1/4 1/2 3/4 1 against 3/4
        ("module", "greater_equal", {"0": 2, "2": 2}),
        ("global", "greater", {"2": 2}),  # eight scores of 1 against 6: the last two, both of the second layer
    ],
)
def test_scope_and_crossing(tiny_net, scope: str, crossing: str, counts: dict[str, int]) -> None:
    options = {"threshold_scope": scope, "threshold_crossing": crossing, "threshold_schedule": "constant"}
    model = tiny_net(r=4, p_init=0.75, **options)
    optimizer, search = start(model)
    for _ in train(model, optimizer, search, range(1, 4)):
        pass
    for name, parameter in model.named_parameters():
        if "lora_beam" in name:
            parameter.data.zero_()
    assert {layer: len(pairs) for layer, pairs in search.step().operated.items()} == counts


def test_pairing_depends_on_the_seed_only(tiny_net) -> None:
    reports = []
    for seed, noise in ((0, 1), (0, 2), (7, 1)):
        torch.manual_seed(noise)
        reports.append(str(first_beam_step(tiny_net(r=7), seed=seed)[0].operated))
    assert reports[0] == reports[1] != reports[2]


def test_sgd_with_momentum_and_without(tiny_net) -> None:
    for momentum in (0.9, 0.0):
        model = tiny_net()
        optimizer, search = start(model, optimizer=lambda p, lr, m=momentum: torch.optim.SGD(p, lr=lr * 10, momentum=m))
        _, (_, snapshot, _, _), _, (_, _, report, after) = train(model, optimizer, search, range(1, 5))
        for layer, child, parent in each_pair(report):
            for entry in ("", "momentum_buffer") if momentum else ("",):
                assert equal(rank(after, layer, child, entry), rank(snapshot, layer, parent, entry))


def test_scores_and_report(tiny_net) -> None:
    model = tiny_net(temperature=0.1)
    optimizer, search = start(model)
    assert {name: s.tolist() for name, s in search.scores().items()} == {
        n: pytest.approx([0.2] * 5) for n in ("0", "2")
    }
    for _ in train(model, optimizer, search, range(1, 4)):
        pass
    for name, module in model.named_modules():
        if isinstance(module, BeamLinear):
            g = module.lora_beam["default"].weight.detach()
            expected = torch.softmax(g.double() / 0.1, 0)
            torch.testing.assert_close(search.scores()[name.removeprefix("base_model.model.")], expected)


def test_snapshot_is_held_only_while_it_is_needed(tiny_net) -> None:
    model = tiny_net()
    optimizer, search = start(model)
    held = {}
    for step, *_ in train(model, optimizer, search, range(1, 31)):
        held[step] = bool(search.state_dict()["snapshot"])
    assert [step for step in held if held[step]] == [
        2,
        3,
        6,
        7,
        10,
        11,
        14,
        15,
    ]  # none after 16, the last beam step
    model = tiny_net(history=False)
    optimizer, search = start(model)
    assert not any(search.state_dict()["snapshot"] for _ in train(model, optimizer, search, range(1, 9)))


# --- temperature and threshold curve ------------------------------------------------------------------------


@pytest.mark.parametrize(("lr", "expected"), [(3e-4, 0.05), (1e-4, 0.05), (9.9e-5, 0.03)])
def test_auto_temperature(tiny_net, tmp_path, lr: float, expected: float) -> None:
    model = tiny_net()
    _, search = start(model, lr=lr)
    assert search.temperature == expected
    assert [m.lora_beam["default"].temperature for m in model.modules() if isinstance(m, BeamLinear)] == [expected] * 2
    model.save_pretrained(tmp_path)
    assert BeamLoraConfig.from_pretrained(tmp_path).temperature == expected


def test_auto_temperature_reads_the_peak_and_not_the_warm_up(tiny_net) -> None:
    model = tiny_net()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = ADAMW([{"params": parameters[:2], "lr": 1e-5}, {"params": parameters[2:], "lr": 2e-4}])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 1000)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    assert BeamSearch(model, optimizer, total_steps=30).temperature == 0.05
    model = tiny_net()
    _, search = start(model, lr=1e-2, learning_rate=5e-5)
    assert search.temperature == 0.03


def test_one_config_serves_several_models() -> None:
    config = BeamLoraConfig(r=4, target_modules=["0"], p_init=0.5, interval=4)
    temperatures = []
    for lr in (1e-5, 1e-2):
        model = get_beamlora_model(nn.Sequential(nn.Linear(12, 9)), config)
        temperatures.append(start(model, lr=lr)[1].temperature)
    assert temperatures == [0.03, 0.05]
    assert config.temperature == "auto"


def test_given_temperature_is_kept(tiny_net) -> None:
    _, search = start(tiny_net(temperature=0.2), lr=1e-5)
    assert search.temperature == 0.2


@pytest.mark.parametrize(
    ("lr_schedule", "curve"),
    [
        ("cosine", "cosine"),
        ("linear", "linear"),
        ("constant", "constant"),
        ("constant_with_warmup", "constant"),
    ],
)
def test_match_lr(tiny_net, lr_schedule: str, curve: str) -> None:
    matched = tiny_net(threshold_schedule="match_lr")
    assert start(matched, lr_schedule=lr_schedule)[1].schedule.curve == curve
    assert start(tiny_net(), lr_schedule=lr_schedule)[1].schedule.curve == "cosine"
    fixed = tiny_net(threshold_schedule="linear")
    assert start(fixed, lr_schedule=lr_schedule)[1].schedule.curve == "linear"


def test_match_lr_needs_a_known_schedule(tiny_net) -> None:
    with pytest.raises(
        ValueError, match="lr_schedule='polynomial': threshold_schedule='match_lr' follows cosine, linear"
    ):
        start(tiny_net(threshold_schedule="match_lr"), lr_schedule="polynomial")
    start(tiny_net(), lr_schedule="polynomial")


# --- refused before training --------------------------------------------------------------------------------


def test_interval_as_fraction_of_all_steps(tiny_net) -> None:
    assert start(tiny_net(interval=0.1), total_steps=50)[1].planned_steps == (5, 10, 15, 20, 25, 30)
    with pytest.raises(ValueError, match=r"interval=0\.01 of 100 steps is 1 steps: must be at least 2"):
        start(tiny_net(interval=0.01), total_steps=100)


@pytest.mark.parametrize(
    ("total_steps", "options", "largest"),
    [
        (30, {}, 15),  # window ends at 20, p(15) < 1, and 30 - 15 >= 15
        (30, {"operate_until": 0.4}, 11),  # p(12) = 1
        (30, {"operate_until": 0.4, "threshold_schedule": "constant"}, 12),
        (31, {"operate_until": 1.0}, 15),
        (7, {}, 3),
    ],
)
def test_too_large_interval_names_the_largest_that_works(tiny_net, total_steps: int, options, largest: int) -> None:
    with pytest.raises(
        ValueError, match=rf"no beam step can happen in {total_steps} steps; the largest .* is {largest}$"
    ):
        start(tiny_net(interval=largest + 1, **options), total_steps=total_steps)
    assert start(tiny_net(interval=largest, **options), total_steps=total_steps)[1].planned_steps == (largest,)


def test_run_too_short_for_any_interval(tiny_net) -> None:
    with pytest.raises(ValueError, match="the run is too short for any interval"):
        start(tiny_net(interval=2), total_steps=3)
    with pytest.raises(ValueError, match="total_steps=0: must be"):
        start(tiny_net(), total_steps=0)


def test_p_init_one_is_allowed_and_said(tiny_net, caplog) -> None:
    _, search = start(tiny_net(p_init=1.0))
    assert search.planned_steps == ()
    assert "no rank is ever operated" in caplog.text


def test_optimizer_must_train_the_adapter(tiny_net) -> None:
    model, other = tiny_net(), tiny_net()
    optimizer = ADAMW([p for p in other.parameters() if p.requires_grad], lr=1e-3)
    with pytest.raises(ValueError, match="layer '0': adapter 'default' is not trained by this optimizer"):
        BeamSearch(model, optimizer, total_steps=30)
    with pytest.raises(TypeError, match="optimizer is a str: must be a torch"):
        BeamSearch(model, "adamw", total_steps=30)


def test_model_must_have_the_adapter(tiny_net) -> None:
    model = tiny_net()
    with pytest.raises(ValueError, match="adapter 'other' is not a BeamLoRA adapter of this model; it has: default"):
        start(model, adapter_name="other")
    with pytest.raises(ValueError, match="it has: none"):
        start(nn.Linear(2, 2))


# --- the adapter among others, and inside wrappers ----------------------------------------------------------


def test_search_of_one_adapter_leaves_the_other_alone(tiny_net) -> None:
    model = tiny_net()
    model.add_adapter("second", BeamLoraConfig(r=4, target_modules=["0"], p_init=0.5, interval=4))
    model.set_adapter("second")
    optimizer, search = start(model, adapter_name="second")
    others = {name: p.clone() for name, p in model.named_parameters() if "default" in name}
    for _ in train(model, optimizer, search, range(1, 9)):
        pass
    assert all(torch.equal(p, others[name]) for name, p in model.named_parameters() if name in others)
    assert list(search.scores()) == ["0"]


def test_layers_without_scores_are_refused() -> None:
    net = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Embedding(8, 8)})
    with pytest.raises(ValueError, match=r"layer 'second' is a Embedding: BeamLoRA adapts nn.Linear"):
        get_peft_model(net, BeamLoraConfig(r=2, target_modules=["first", "second"]))


def test_wrapped_model(tiny_net) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    assert list(start(Wrapper(tiny_net()))[1].scores()) == ["0", "2"]
