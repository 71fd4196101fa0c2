"""Adapted layers as one operation: y = W0 x + b + B (s * (A dropout(x))); s: the ranks' weights times the scaling.

The plain path (`BeamVariant.forward`) touches [tokens, d_out] three times more, for B's product, the scaling and the
sum. Here s goes into A, which is small, the adapter's product is added where the frozen layer's already is, and the
gradients are written out, g being that of y:

    D = s * A     h = x D^T     y = x W0^T + b + h B^T
    u = g B       dx = g W0 + u D       dB = g^T h       dD = u^T x       dA = s * dD       ds = sum of dD * A over d_in

Layers that are given the same x (q, k and v; gate and up) are one operation together: h, u D and u^T x are one product
for all their A's, and dx is summed where it is made. The frozen weights need no gradient, and x, h and the parameters
are all that is kept. Dropout's masks, one for every layer as in PEFT, are drawn again in the backward pass, from seeds
that the forward pass draws from PyTorch's default generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from beamlora.dropout import drop, drop_gradient, scale


class Operands(NamedTuple):
    """One layer.

    Attributes:
        weight: [d_out, d_in], frozen, as is `bias` [d_out].
        a, b: [r, d_in] and [d_out, r], of x's type or in float32.
        s: [r], the ranks' weights (Eq. 5) times the scaling, of a's type or in float32.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    s: Tensor


def beam_products(x: Tensor, layers: Sequence[Operands], dropout: float) -> tuple[Tensor, ...]:
    """The outputs [..., d_out] of some layers for one input.

    Args:
        x: [..., d_in]; it has the type of the weights, in which all products are taken.
        layers: that share this input.
        dropout: of the adapters' inputs, for each a mask of its own.
    """
    seeds = torch.randint(2**62, (len(layers),), device="cpu").tolist() if dropout else ()
    outputs: tuple[Tensor, ...] = _BeamProducts.apply(x, dropout, seeds, *(part for layer in layers for part in layer))
    return outputs


class _BeamProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float, seeds: Sequence[int], *parts: Tensor) -> tuple[Tensor, ...]:
        layers, flat = _layers(parts), x.reshape(-1, x.shape[-1])
        weighted = [_weighted(layer, x, dropout) for layer in layers]
        if dropout:
            hidden = [drop(flat, dropout, seed)[0] @ d.T for d, seed in zip(weighted, seeds, strict=True)]
        else:
            hidden = list((flat @ torch.cat(weighted).T).split([len(d) for d in weighted], 1))
        outputs = []
        for layer, h in zip(layers, hidden, strict=True):
            y = x.new_empty(*x.shape[:-1], len(layer.weight))  # not a view, so that models may change it in place
            rows = y.view(-1, len(layer.weight))
            if layer.bias is None:
                torch.mm(flat, layer.weight.T, out=rows)
            else:
                torch.addmm(layer.bias, flat, layer.weight.T, out=rows)
            rows.addmm_(h, layer.b.to(x.dtype).T)
            outputs.append(y)
        ctx.save_for_backward(x, *hidden, *parts)
        ctx.dropout, ctx.seeds = dropout, seeds
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        hidden, layers = saved[: len(gradients)], _layers(saved[len(gradients) :])
        flat, dropout = x.reshape(-1, x.shape[-1]), ctx.dropout
        used = [
            (i, layer, g.reshape(-1, g.shape[-1]))
            for i, (layer, g) in enumerate(zip(layers, gradients, strict=True))
            if g is not None
        ]
        found: list[Tensor | None] = [None] * (len(Operands._fields) * len(layers))
        if not used:
            return None, None, None, *found
        dx: Tensor | None = None
        u = [g @ layer.b.to(x.dtype) for _, layer, g in used]
        d = [_weighted(layer, x, dropout) for _, layer, _ in used]
        if dropout:
            dd = []
            for (i, _, _), u_i, d_i in zip(used, u, d, strict=True):
                dropped, mask = drop(flat, dropout, ctx.seeds[i])
                dd.append((u_i.T @ dropped).mul_(scale(flat, dropout)))
                if ctx.needs_input_grad[0]:
                    part = drop_gradient(u_i @ d_i, dropout, mask)
                    dx = part if dx is None else dx.add_(part)
        else:
            together = torch.cat(u, 1) if len(u) > 1 else u[0]
            dd = list((together.T @ flat).split([len(d_i) for d_i in d]))
            if ctx.needs_input_grad[0]:
                dx = together @ (torch.cat(d) if len(d) > 1 else d[0])
        if dx is not None:  # the frozen weights' part last, added where the other already is
            for _, layer, g in used:
                dx.addmm_(g, layer.weight)
        for (i, layer, g), dd_i in zip(used, dd, strict=True):
            da, ds = dd_i * layer.s[:, None], (dd_i * layer.a).sum(1)
            gradient = Operands(None, None, da, (hidden[i].T @ g).T, ds)  # type: ignore[arg-type]
            first = len(Operands._fields) * i
            found[first : first + len(gradient)] = [
                value if value is None else value.to(parameter.dtype)  # type: ignore[union-attr]
                for value, parameter in zip(gradient, layer, strict=True)
            ]
        return None if dx is None else dx.view_as(x), None, None, *found


def _layers(parts: Sequence[Any]) -> list[Operands]:
    cuts = pairwise(accumulate([len(Operands._fields)] * (len(parts) // len(Operands._fields)), initial=0))
    return [Operands(*parts[start:end]) for start, end in cuts]


def _weighted(layer: Operands, x: Tensor, dropout: float) -> Tensor:
    """D [r, d_in] in x's type, with what dropout leaves to be multiplied by."""
    s = layer.s * scale(x, dropout) if dropout else layer.s
    return (layer.a * s[:, None]).to(x.dtype)
