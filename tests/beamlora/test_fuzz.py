"""Random programs of calls and of what may happen between them: the fused layers do what the plain ones do.

Each program runs on two equal models, one fused and one not, whose results are compared at each step. A program is
known by its seed: BEAMLORA_FUZZ=100:5000 runs the programs 100 to 4999.
"""

from __future__ import annotations

import copy
import io
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beamlora import BeamLoraConfig, get_beamlora_model

FIRST, LAST = (int(number) for number in os.environ.get("BEAMLORA_FUZZ", "0:80").split(":"))
CHUNKS = 4
STEPS = 25
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Attention(nn.Module):
    """Calls its layers as models do: of one input or of two, in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.o_proj = nn.Linear(4, 4)
        self.order = list(LAYERS[:3])

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        inputs = {"q_proj": x, "k_proj": other, "v_proj": other}
        found = {name: getattr(self, name)(inputs[name]) for name in self.order}
        weights = torch.softmax(found["q_proj"] @ found["k_proj"].transpose(-1, -2), dim=-1)
        return self.o_proj(weights @ found["v_proj"])


class Interrupted(Exception):
    pass


class Machine:
    """A model in the middle of a program, with the tensors that the program computes with."""

    def __init__(self, fused: bool, seed: int) -> None:
        torch.manual_seed(seed)
        config = BeamLoraConfig(r=2, target_modules=list(LAYERS), fused=fused, init_lora_weights=False)
        self.model: Any = get_beamlora_model(nn.Sequential(Attention()), config)
        self.model.add_adapter("second", config)
        self.model.double()
        self.inputs = [torch.randn(3, 4).double(), torch.randn(3, 4).double()]
        self.results: list[Tensor] = []
        self.seen: list[Tensor] = []

    @property
    def attention(self) -> Any:
        return self.model.base_model.model[0]

    def keep(self, result: Tensor) -> None:
        self.seen.append(result.detach().clone())
        if result.requires_grad:
            self.results.append(result)

    def layer(self, draw: random.Random) -> None:
        self.keep(getattr(self.attention, draw.choice(LAYERS))(draw.choice(self.inputs)))

    def attend(self, draw: random.Random) -> None:
        draw.shuffle(self.attention.order)
        self.keep(self.attention(draw.choice(self.inputs), draw.choice(self.inputs)))

    def checkpointed(self, draw: random.Random) -> None:
        draw.shuffle(self.attention.order)
        inputs = draw.choice(self.inputs), draw.choice(self.inputs)
        whole = draw.random() < 0.5
        function: Callable[..., Tensor] = self.attention if whole else getattr(self.attention, draw.choice(LAYERS))
        arguments = inputs if whole else inputs[:1]
        reentrant = draw.random() < 0.3
        if reentrant:
            arguments = tuple(x if x.requires_grad else x.clone().requires_grad_() for x in arguments)
        self.keep(checkpoint(function, *arguments, use_reentrant=reentrant))
        self.backward(draw)  # what is computed again must still be as it was

    def inside(self, draw: random.Random) -> None:
        """A part of a module's forward is checkpointed, the rest is not."""
        x, names = draw.choice(self.inputs), draw.sample(LAYERS, 2)
        first = checkpoint(getattr(self.attention, names[0]), x, use_reentrant=False)
        self.keep(first * getattr(self.attention, names[1])(x))
        self.backward(draw)

    def changed(self, draw: random.Random) -> None:
        x = draw.choice(self.inputs)
        with torch.no_grad():
            x.mul_(0.5).add_(draw.random())
        self.results.clear()  # their backward pass would be refused, on either path

    def chained(self, draw: random.Random) -> None:
        """An input with a graph behind it."""
        x = draw.choice(self.inputs).clone().requires_grad_()
        self.keep(getattr(self.attention, draw.choice(LAYERS))(getattr(self.attention, draw.choice(LAYERS))(x)))

    def in_place(self, draw: random.Random) -> None:
        x = draw.choice(self.inputs)
        y = getattr(self.attention, draw.choice(LAYERS))(x)
        y.mul_(2)
        self.keep(y)

    def without_gradients(self, draw: random.Random) -> None:
        with torch.no_grad() if draw.random() < 0.5 else torch.inference_mode():
            self.layer(draw)
            self.attend(draw)

    def backward(self, draw: random.Random) -> None:
        if self.results:
            leaves = [p for p in self.model.parameters() if p.requires_grad]
            total = torch.stack([result.square().sum() for result in self.results]).sum()
            self.seen += torch.autograd.grad(total, leaves, materialize_grads=True)
            self.results.clear()

    def step(self, draw: random.Random) -> None:
        self.results.clear()
        scale = draw.random()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(0.9).add_(0.01 * scale)

    def data(self, draw: random.Random) -> None:
        """As DeepSpeed changes weights, unseen by autograd."""
        self.results.clear()
        getattr(self.attention, draw.choice(LAYERS)).lora_B["default"].weight.data *= 0.8

    def switch(self, draw: random.Random) -> None:
        self.results.clear()
        self.model.set_adapter(draw.choice(["default", "second"]))

    def disabled(self, draw: random.Random) -> None:
        self.layer(draw)
        with self.model.disable_adapter():
            self.layer(draw)
        self.layer(draw)

    def mode(self, draw: random.Random) -> None:
        self.model.train(draw.random() < 0.5)

    def interrupted(self, draw: random.Random) -> None:
        """Something raises in the middle of the module's forward."""

        def interrupt(*_: Any) -> None:
            raise Interrupted

        handle = getattr(self.attention, draw.choice(LAYERS)).register_forward_hook(interrupt)
        with pytest.raises(Interrupted):
            self.attention(*self.inputs)
        handle.remove()

    def hooked(self, draw: random.Random) -> None:
        part = getattr(self.attention, draw.choice(LAYERS)).base_layer
        handle = part.register_forward_hook(lambda module, inputs, output: output * 3)
        self.attend(draw)
        handle.remove()

    def copied(self, draw: random.Random) -> None:
        self.layer(draw)
        self.results.clear()
        self.model = copy.deepcopy(self.model)

    def saved(self, draw: random.Random) -> None:
        self.layer(draw)
        self.results.clear()
        file = io.BytesIO()
        torch.save(self.model, file)
        file.seek(0)
        self.model = torch.load(file, weights_only=False)

    def merged(self, draw: random.Random) -> None:
        self.results.clear()
        self.model.merge_adapter()
        with torch.no_grad():
            self.layer(draw)
        self.model.unmerge_adapter()

    def penalty(self, draw: random.Random) -> None:
        x = draw.choice(self.inputs).clone().requires_grad_()
        y = getattr(self.attention, draw.choice(LAYERS))(x)
        leaves = [x, *(p for p in self.model.parameters() if p.requires_grad)]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True, materialize_grads=True)
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        self.seen += torch.autograd.grad(total, leaves, materialize_grads=True)


OPERATIONS = [
    Machine.layer, Machine.layer, Machine.layer, Machine.attend, Machine.attend, Machine.checkpointed, Machine.inside,
    Machine.changed, Machine.chained, Machine.in_place, Machine.without_gradients, Machine.backward, Machine.step,
    Machine.data, Machine.switch, Machine.disabled, Machine.mode, Machine.interrupted, Machine.hooked, Machine.copied,
    Machine.saved, Machine.merged, Machine.penalty,
]  # fmt: skip


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int) -> None:
    for seed in range(FIRST + chunk, LAST, CHUNKS):
        machines = [Machine(fused, seed) for fused in (True, False)]
        program = random.Random(seed).choices(OPERATIONS, k=STEPS)
        done: list[str] = []
        for number, operation in enumerate(program):
            done.append(operation.__name__)
            for machine in machines:
                operation(machine, random.Random(f"{seed} {number}"))
            ours, theirs = (machine.seen for machine in machines)
            assert len(ours) == len(theirs), f"program {seed}: {done}"
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(
                    one,
                    other,
                    rtol=1e-9,
                    atol=1e-9,
                    msg=lambda why, seed=seed, done=done: f"program {seed}: {done}: {why}",
                )
            for machine in machines:
                machine.seen.clear()
