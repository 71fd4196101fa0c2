"""The layer as one operation against the plain path, which stays as the reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from beamlora import BeamLoraConfig, get_beamlora_model
from beamlora.fusable import fused_adapter
from beamlora.fused import Operands, beam_product
from beamlora.layer import BeamLinear

SHAPES = [(6, 6), (8, 3), (3, 8)]
pytestmark = pytest.mark.usefixtures("device")


def pair(d_in: int, d_out: int, randomized, dtype: torch.dtype = torch.float32, **options: object) -> list[nn.Module]:
    """The same layer twice: fused, and plain."""
    made = []
    for fused in (True, False):
        torch.manual_seed(0)
        config = {"r": 3, "lora_alpha": 5, "target_modules": ["0"], "temperature": 0.04, "fused": fused}
        net = nn.Sequential(nn.Linear(d_in, d_out, bias=options.pop("bias", True)))  # type: ignore[arg-type]
        model = get_beamlora_model(net, BeamLoraConfig(**(config | options)))
        torch.manual_seed(1)
        made.append(randomized(model).to(dtype))
    return made


def gradients(model: nn.Module, x: torch.Tensor, seed: int = 2) -> list[torch.Tensor]:
    """The output, and what sum of squares gives x and each trained parameter."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    assert len(leaves) == 4
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def is_fused(model: nn.Module, x: torch.Tensor) -> bool:
    node = model(x).grad_fn
    while node is not None and "View" in type(node).__name__:
        node = node.next_functions[0][0]
    return node is not None and "BeamProduct" in type(node).__name__


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_output_and_every_gradient(d_in: int, d_out: int, dtype: torch.dtype, tolerance: float, randomized) -> None:
    fused, plain = pair(d_in, d_out, randomized, dtype)
    x = torch.randn(2, 5, d_in).to(dtype)
    assert is_fused(fused, x) and not is_fused(plain, x)
    for ours, theirs in zip(gradients(fused, x), gradients(plain, x), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(dropout: float, bias: bool) -> None:
    def product(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same mask whenever it is asked
        return beam_product(x, Operands(weight, offset if bias else None, a, b, s), dropout)

    weight, offset = torch.randn(5, 7).double(), torch.randn(5).double()
    shapes = ((2, 3, 7), (4, 7), (5, 4), (4,))
    inputs = [torch.randn(*shape).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_dropout_s_mask_is_that_of_the_seed_and_scaled() -> None:
    """With A the identity and W0 zero the output is the dropped input times B."""
    x, rate = torch.ones(400, 50), 0.3
    torch.manual_seed(4)
    layer = Operands(torch.zeros(50, 50), None, torch.eye(50), torch.eye(50), torch.ones(50))
    gpus = [torch.cuda.get_rng_state()] if x.is_cuda else []
    first = beam_product(x, layer, rate)
    assert all(torch.equal(torch.cuda.get_rng_state(), state) for state in gpus), "the GPU's own generator goes on"
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    assert float(first.count_nonzero()) / first.numel() == pytest.approx(1 - rate, abs=0.01)
    again = beam_product(x, layer, rate)
    assert not torch.equal(first, again), "another draw"
    torch.manual_seed(4)
    same = beam_product(x, layer, rate)
    assert torch.equal(first, same)


def test_no_dropout_when_not_training(randomized) -> None:
    fused, plain = pair(6, 6, randomized, lora_dropout=0.5)
    x = torch.randn(4, 6)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    assert not torch.allclose(fused.train()(x), fused.eval()(x))


def test_under_gradient_checkpointing_the_mask_is_the_same(randomized) -> None:
    fused, _ = pair(6, 4, randomized, lora_dropout=0.5)
    x = torch.randn(3, 6)
    torch.manual_seed(5)
    whole = torch.autograd.grad(fused(x).square().sum(), [p for p in fused.parameters() if p.requires_grad])
    torch.manual_seed(5)
    again = checkpoint(fused, x, use_reentrant=False)
    parts = torch.autograd.grad(again.square().sum(), [p for p in fused.parameters() if p.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_it_keeps_no_more_than_x_and_h(randomized) -> None:
    kept: dict[bool, int] = {}
    for model in pair(64, 256, randomized, target_modules=["0"]):
        x, sizes = torch.randn(100, 64, requires_grad=True), {}
        own = {p.data_ptr() for p in model.parameters()}

        def keep(tensor: torch.Tensor, own=own, sizes=sizes) -> torch.Tensor:
            if tensor.data_ptr() not in own and tensor.numel() >= 100:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(x)
        kept[is_fused(model, x)] = sum(sizes.values())
    assert kept[True] == 100 * 64 + 100 * 3 < kept[False]


def test_where_it_cannot_be_the_plain_path_is_taken(randomized, device: str) -> None:
    x = torch.randn(2, 6)
    fused, plain = pair(6, 4, randomized)
    with fused.disable_adapter():
        assert not is_fused(fused, x)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert not is_fused(fused, x)
    layer = next(module for module in fused.modules() if isinstance(module, BeamLinear))
    layer.base_layer.weight.requires_grad_(True)
    assert not is_fused(fused, x), "its weight would get no gradient"
    layer.base_layer.weight.requires_grad_(False)
    assert is_fused(fused, x)
    kept, layer.base_layer.weight = layer.base_layer.weight, nn.Parameter(torch.empty(4, 6, device="meta"), False)
    assert fused_adapter(layer, layer.fused, x) is None, "a hook would fetch it when the frozen layer is called"
    layer.base_layer.weight = kept
    layer.lora_A["default"].to(torch.bfloat16)
    layer.lora_B["default"].to(torch.bfloat16)
    assert not is_fused(fused, x)
    fused, plain = pair(6, 4, randomized)
    before = fused(x)
    fused.merge_adapter()
    torch.testing.assert_close(fused(x), before)
    fused.unmerge_adapter()
    assert is_fused(fused, x)
    torch.testing.assert_close(torch.compile(plain, backend="eager")(x), torch.compile(fused, backend="eager")(x))


@pytest.mark.parametrize("autocast", [False, True])
def test_float32_adapters_on_a_bfloat16_base(autocast: bool, randomized, device: str) -> None:
    """PEFT's default; the products are taken in bfloat16, the parameters and their gradients stay as they are. Under
    autocast the plain path takes the adapter's products in bfloat16, too."""
    x, found = torch.randn(50, 64).bfloat16(), []
    for model in pair(64, 32, randomized):
        (layer,) = (module for module in model.modules() if isinstance(module, BeamLinear))
        layer.base_layer.to(torch.bfloat16)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            assert is_fused(model, x) == model.peft_config["default"].fused
            found.append(gradients(model, x))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))


@pytest.fixture
def llamas(tiny_llama, randomized) -> Callable[..., list[PeftModel]]:
    """A small Llama twice: fused, and plain."""

    def build(dtype: torch.dtype = torch.float64, **options: object) -> list[PeftModel]:
        settings = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
        return [
            randomized(get_beamlora_model(tiny_llama(), BeamLoraConfig(fused=fused, **settings))).to(dtype)  # type: ignore[arg-type]
            for fused in (True, False)
        ]

    return build


def examples() -> dict[str, torch.Tensor]:
    ids = torch.arange(24).reshape(2, 12)
    return {"input_ids": ids, "labels": ids}


def operations(loss: torch.Tensor) -> int:
    """How many fused operations its graph has."""
    seen, front = set(), [loss.grad_fn]
    while front:
        node = front.pop()
        if node is not None and node not in seen:
            seen.add(node)
            front += [parent for parent, _ in node.next_functions]
    return sum("BeamProduct" in type(node).__name__ for node in seen)  # type: ignore[union-attr]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_of_a_model_is_one_operation(llamas, checkpointing: bool) -> None:
    """Losses and gradients are those of the plain path."""
    found = []
    for model in llamas():
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model.train()(**examples()).loss
        if not checkpointing:
            fused = model.peft_config["default"].fused
            assert operations(loss) == (2 * 7 if fused else 0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append([loss.detach(), *torch.autograd.grad(loss, trained)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Attention(nn.Module):
    """Queries of one input, keys and values of another."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x).mul_(2) + self.k_proj(other) * self.v_proj(other)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_models_may_change_outputs_in_place(shape: tuple[int, ...], randomized) -> None:
    """`Attention` multiplies its queries in place."""
    x, found = torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape), []
    for fused in (True, False):
        for targets in (["q_proj"], ["q_proj", "k_proj", "v_proj"]):
            torch.manual_seed(0)
            config = BeamLoraConfig(r=2, target_modules=targets, fused=fused)
            model = randomized(get_beamlora_model(nn.Sequential(OrderedDict(a=Attention())), config))
            loss = model.base_model.model.a(x, x).square().sum()
            assert operations(loss) == (len(targets) if fused else 0)
            found.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    for ours, theirs in zip(found[0] + found[1], found[2] + found[3], strict=True):
        torch.testing.assert_close(ours, theirs)


class CrossAttention(nn.Module):
    """Keys and values first, of an input with another number of features, as in BLIP-2's Q-Former and Perceiver."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        keys, values = self.k_proj(other), self.v_proj(other)
        return torch.softmax(self.q_proj(x) @ keys.T, -1) @ values


@pytest.mark.parametrize("attention", [Attention, CrossAttention])
def test_cross_attention_under_checkpointing(attention: type[nn.Module], randomized) -> None:
    """What is computed again for the backward pass saves what the forward pass saved, call after call."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        config = BeamLoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], fused=fused)
        model = randomized(get_beamlora_model(nn.Sequential(OrderedDict(a=attention())), config)).double()
        other = torch.randn(3, model.base_model.model.a.k_proj.in_features).double()
        for _ in range(2):
            x = torch.randn(3, 4).double()
            loss = checkpoint(model.base_model.model.a, x, other, use_reentrant=False).square().sum()
            found.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    for ours, theirs in zip(found[0] + found[1], found[2] + found[3], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("change", ["in place", "weights", "disabled", "gradients"])
def test_a_layer_knows_nothing_of_another_s_call(change: str, randomized) -> None:
    """q(x), then something changes, then k(x)."""
    config = BeamLoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"])
    model = randomized(get_beamlora_model(nn.Sequential(OrderedDict(a=Attention())), config))
    attention, x = model.base_model.model.a, torch.randn(3, 4)
    with torch.set_grad_enabled(change != "gradients"):
        attention.q_proj(x)
    if change == "in place":
        x.mul_(2)
    elif change == "weights":
        attention.k_proj.lora_B["default"].weight.data *= 3
    elif change == "disabled":
        model.base_model.disable_adapter_layers()
    found = attention.k_proj(x)
    assert found.requires_grad == (change != "disabled")
    attention.k_proj.fused["default"] = False
    torch.testing.assert_close(found, attention.k_proj(x.clone()))


def bart() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, dropout=0.0,
    )  # fmt: skip
    ids = torch.arange(3, 15).reshape(2, 6)
    return BartForConditionalGeneration(config), {"input_ids": ids, "labels": ids}


def whisper() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=10,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.0,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config), {
        "input_features": torch.randn(2, 8, 20),
        "labels": torch.arange(3, 15).reshape(2, 6),
    }


def q_former() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    config = Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, encoder_hidden_size=20,
        cross_attention_frequency=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Blip2QFormerModel(config), {
        "query_embeds": torch.randn(2, 3, 16),
        "encoder_hidden_states": torch.randn(2, 5, 20),
    }


@pytest.mark.parametrize("build", [bart, whisper, q_former])
def test_models_with_cross_attention_under_checkpointing(build: Callable, randomized) -> None:
    """transformers' own, with the checkpointing that it uses where nothing else is asked for."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        base, inputs = build()
        config = BeamLoraConfig(r=2, target_modules=r".*\.(q_proj|k_proj|v_proj|query|key|value)", fused=fused)
        model = randomized(get_beamlora_model(base, config)).double().train()
        base.gradient_checkpointing_enable()
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        for _ in range(2):
            output = base(**inputs)
            loss = output.loss if "labels" in inputs else output[0].square().mean()
            found.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    for ours, theirs in zip(found[0] + found[1], found[2] + found[3], strict=True):
        assert ours.any()
        torch.testing.assert_close(ours, theirs)
