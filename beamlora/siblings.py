"""Layers that are given the same input are computed together: the first one called does it, the others take theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from beamlora.layer import BeamLinear

NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Of children of one module, in the order in which transformers' models call them."""


class Siblings:
    """Some layers of one module, and what the first has computed for the others.

    They find each other by their names; that they are given the very same tensor is seen at each call, and where they
    are not, as in cross-attention, each is computed alone from then on.
    """

    def __init__(self, layers: list[BeamLinear]) -> None:
        self.layers = layers
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def followers(self, layer: BeamLinear) -> list[BeamLinear]:
        """The layers to compute with this one: all others if it is the first."""
        return self.layers[1:] if self.layers and layer is self.layers[0] else []

    def keep(self, x: Tensor, layers: list[BeamLinear], outputs: tuple[Tensor, ...]) -> None:
        """Outputs for `x` that the layers will ask for."""
        self._input, self._outputs = x, {id(layer): y for layer, y in zip(layers, outputs, strict=True)}

    def take(self, layer: BeamLinear, x: Tensor) -> Tensor | None:
        """What was computed for this layer and this very input; nothing is kept longer than that."""
        if not self._outputs or id(layer) not in self._outputs:
            return None
        if x is not self._input:
            self._input, self._outputs, self.layers = None, {}, []
            return None
        output = self._outputs.pop(id(layer))
        if not self._outputs:
            self._input = None
        return output


def find_siblings(model: nn.Module) -> Iterator[Siblings]:
    """All sets of adapted layers in `model` that share an input."""
    from beamlora.layer import BeamLinear

    for module in model.modules():
        for names in NAMES:
            layers = [child for name in names if isinstance(child := module._modules.get(name), BeamLinear)]
            if len(layers) > 1:
                yield Siblings(layers)
