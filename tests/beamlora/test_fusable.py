"""What is attached to a layer's parts, and what autograd's transforms ask for, holds as on the plain layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize, prune

from beamlora import BeamLoraConfig, get_beamlora_model
from beamlora.fusable import fused_adapter
from beamlora.layer import BeamLinear


def able(layer: BeamLinear, x: Tensor) -> str | None:
    """The adapter that the fused operation can run on `x`."""
    return fused_adapter(layer, layer.fused, x)


def pair(randomized: Any, **options: Any) -> list[nn.Module]:
    """The same layer twice: fused, and plain."""
    made = []
    for fused in (True, False):
        torch.manual_seed(0)
        config = BeamLoraConfig(**({"r": 3, "target_modules": ["0"], "fused": fused} | options))
        made.append(randomized(get_beamlora_model(nn.Sequential(nn.Linear(6, 4)), config)).double())
    return made


def layer_of(model: nn.Module) -> BeamLinear:
    return next(module for module in model.modules() if isinstance(module, BeamLinear))


def parts(layer: BeamLinear) -> dict[str, nn.Module]:
    return {
        "base": layer.base_layer,
        "lora_A": layer.lora_A["default"],
        "lora_B": layer.lora_B["default"],
        "dropout": layer.lora_dropout["default"],
    }


def outcome(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of its sum of squares."""
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y, *torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)]


def forward_hook(part: nn.Module) -> None:
    part.register_forward_hook(lambda module, inputs, output: output * 1.5)


def forward_pre_hook(part: nn.Module) -> None:
    part.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 0.5,))


def backward_hook(part: nn.Module) -> None:
    part.register_full_backward_hook(
        lambda module, inputs, outputs: tuple(None if g is None else g * 2 for g in inputs)
    )


def backward_pre_hook(part: nn.Module) -> None:
    part.register_full_backward_pre_hook(lambda module, gradients: tuple(g * 3 for g in gradients))


def replaced_forward(part: nn.Module) -> None:
    original = part.forward
    part.forward = lambda x: original(x) + 0.25  # type: ignore[method-assign]


def pruned(part: nn.Module) -> None:
    prune.l1_unstructured(part, "weight", amount=0.5)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(part: nn.Module) -> None:
    parametrize.register_parametrization(part, "weight", _Doubled())


def weight_normed(part: nn.Module) -> None:
    parametrizations.weight_norm(part)
    part.parametrizations.weight.original0.data.mul_(1.5)  # type: ignore[union-attr, operator]


ANY = [forward_hook, forward_pre_hook, backward_hook, backward_pre_hook, replaced_forward]
ATTACHED = [(part, attach) for part in ("base", "lora_A", "lora_B", "dropout") for attach in ANY] + [
    (part, attach) for part in ("base", "lora_A", "lora_B") for attach in (pruned, parametrized, weight_normed)
]


@pytest.mark.parametrize(("part", "attach"), ATTACHED, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_attached_to_a_part_holds(part: str, attach: Callable[[nn.Module], None], randomized: Any) -> None:
    x, found = torch.randn(5, 6).double(), []
    unchanged = outcome(pair(randomized)[1], x)
    for model in pair(randomized):
        attach(parts(layer_of(model))[part])
        if part == "base":
            layer_of(model).base_layer.requires_grad_(False)
        found.append(outcome(model, x))
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    same = len(unchanged) == len(found[1]) and all(map(torch.allclose, unchanged, found[1]))
    assert not same, "it changes nothing, and so would show nothing"


def test_a_hook_on_every_module_holds(randomized: Any) -> None:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.Linear) else None
    )
    try:
        x = torch.randn(5, 6).double()
        for ours, theirs in zip(*(outcome(model, x) for model in pair(randomized)), strict=True):
            torch.testing.assert_close(ours, theirs)
    finally:
        handle.remove()


def test_another_forward_of_the_class_holds(randomized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, original = torch.randn(5, 6).double(), nn.Linear.forward
    models = pair(randomized)
    assert able(layer_of(models[0]), x) == "default"
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: original(self, x) + 1)
    for ours, theirs in zip(*(outcome(model, x) for model in models), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_hooks_on_scores_and_parameters_hold_on_the_fused_path(randomized: Any) -> None:
    x, found = torch.randn(5, 6).double(), []
    for model in pair(randomized):
        layer = layer_of(model)
        layer.scores("default").register_forward_hook(lambda module, inputs, weights: weights * 2)
        layer.lora_B["default"].weight.register_hook(lambda gradient: gradient * 5)
        found.append(outcome(model, x))
        assert able(layer, x) == ("default" if layer.fused["default"] else None)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_follows_its_own_module_s_mode(training: bool, randomized: Any) -> None:
    (fused, _), x = pair(randomized, lora_dropout=0.5), torch.randn(5, 6).double()
    fused.train(not training)
    layer_of(fused).lora_dropout.train(training)
    assert able(layer_of(fused), x) == "default"
    assert torch.equal(fused(x), fused(x)) == (not training)


def test_dropout_of_everything_is_the_plain_path(randomized: Any) -> None:
    x = torch.randn(5, 6).double()
    for model in pair(randomized, lora_dropout=0.999999):
        torch.testing.assert_close(model(x), layer_of(model).base_layer(x))


def test_dropout_of_another_kind_is_the_plain_path(randomized: Any) -> None:
    fused, _ = pair(randomized, lora_dropout=0.5)
    layer_of(fused).lora_dropout["default"] = nn.AlphaDropout(0.5)
    assert able(layer_of(fused), torch.randn(5, 6).double()) is None


def test_vmap_and_per_sample_gradients(randomized: Any) -> None:
    x, found = torch.randn(5, 6).double(), []
    for model in pair(randomized):
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

        def loss(parameters: dict[str, Tensor], one: Tensor, model: nn.Module = model) -> Tensor:
            return torch.func.functional_call(model, parameters, (one,)).square().sum()

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, x)
        found.append([torch.func.vmap(model)(x), *each.values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_forward_mode(randomized: Any) -> None:
    x, direction, found = torch.randn(5, 6).double(), torch.randn(5, 6).double(), []
    for model in pair(randomized):
        _, along = torch.func.jvp(model, (x,), (direction,))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
        found.append([along, dual])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_gradients(dropout: float, randomized: Any) -> None:
    """A gradient penalty: they are differentiated again, on the fused path."""
    x, found = torch.randn(5, 6).double(), []
    for model in pair(randomized, lora_dropout=dropout):
        leaves = [x.clone().requires_grad_(), *(p for p in model.parameters() if p.requires_grad)]

        def penalty(model: nn.Module = model, leaves: list[Tensor] = leaves) -> Tensor:
            torch.manual_seed(3)
            first = torch.autograd.grad(model(leaves[0]).square().sum(), leaves, create_graph=True)
            return torch.stack([gradient.square().sum() for gradient in first]).sum()

        second = torch.autograd.grad(penalty(), leaves)
        found.append(second)
        if layer_of(model).fused["default"]:
            for leaf, gradient in zip(leaves, second, strict=True):
                step = torch.randn_like(leaf)
                with torch.no_grad():
                    leaf.add_(step, alpha=1e-6)
                up = penalty().detach()
                with torch.no_grad():
                    leaf.add_(step, alpha=-2e-6)
                slope = (up - penalty().detach()) / 2e-6
                with torch.no_grad():
                    leaf.add_(step, alpha=1e-6)
                torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-4, atol=1e-4)
    if not dropout:
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_and_the_meta_device(randomized: Any) -> None:
    (fused, plain), x = pair(randomized), torch.randn(5, 6).double()
    traced = torch.jit.trace(fused, x, check_trace=False)
    torch.testing.assert_close(traced(2 * x), plain(2 * x))
    for model in (fused, plain):
        assert model.to("meta")(x.to("meta")).shape == (5, 4)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 0, 6), (1, 2, 3, 6)])
def test_inputs_of_any_number_of_dimensions(shape: tuple[int, ...], randomized: Any) -> None:
    x = torch.randn(shape).double()
    for options in ({}, {"lora_dropout": 0.5}):
        fused, plain = (outcome(model.eval(), x) for model in pair(randomized, **options))
        for ours, theirs in zip(fused, plain, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert layer_of(pair(randomized, **options)[0]).train()(x).shape == (*shape[:-1], 4)
