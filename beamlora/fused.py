"""An adapted layer as one operation: y = W0 x + b + B (s * (A dropout(x))); s: the ranks' weights times the scaling.

The plain path (`BeamVariant.forward`) touches [tokens, d_out] three times more, for B's product, the scaling and the
sum. Here s goes into A, which is small, the adapter's product is added where the frozen layer's already is, and the
gradients are written out, g being that of y:

    D = s * A     h = x D^T     y = x W0^T + b + h B^T
    u = g B       dx = g W0 + u D       dB = g^T h       dD = u^T x       dA = s * dD       ds = sum of dD * A over d_in

The frozen weights need no gradient, and x, h and the parameters are all that is kept. Dropout's mask is drawn again in
the backward pass, from a seed that the forward pass draws from PyTorch's default generator.

Nothing is kept from one call to the next. (q, k and v were once computed together, by whichever came first. What it
had computed for the others was wrong as soon as anything changed in between.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

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


def beam_product(x: Tensor, layer: Operands, dropout: float) -> Tensor:
    """The layer's output [..., d_out].

    Args:
        x: [..., d_in]; it has the type of the weights, in which all products are taken.
        layer: its weights.
        dropout: the rate at which the adapter's input is dropped, below 1.
    """
    seed = int(torch.randint(2**62, (), device="cpu")) if dropout else 0
    output: Tensor = _BeamProduct.apply(x, dropout, seed, *layer)
    return output


class _BeamProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropout: float,
        seed: int,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        s: Tensor,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        h = (drop(flat, dropout, seed)[0] if dropout else flat) @ _weighted(x, a, s, dropout).T
        y = x.new_empty(*x.shape[:-1], len(weight))  # not a view, so that models may change it in place
        rows = y.view(-1, len(weight))
        if bias is None:
            torch.mm(flat, weight.T, out=rows)
        else:
            torch.addmm(bias, flat, weight.T, out=rows)
        rows.addmm_(h, b.to(x.dtype).T)
        ctx.save_for_backward(x, h, weight, a, b, s)
        ctx.dropout, ctx.seed = dropout, seed
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, h, weight, a, b, s = ctx.saved_tensors
        dropout = ctx.dropout
        if torch.is_grad_enabled():  # create_graph=True: these gradients will be differentiated themselves
            dx, da, db, ds = _differentiable(gradient, x, weight, a, b, s, dropout, ctx.seed)
            return dx, None, None, None, None, da, db, ds
        flat, g = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        # B's rows are short: a CPU reads its columns faster (at r = 4 in less than half of the time).
        u, d = g @ b.to(x.dtype).T.contiguous().T, _weighted(x, a, s, dropout)
        dx = None
        if dropout:
            dropped, mask = drop(flat, dropout, ctx.seed)
            dd = _over_tokens(u, dropped).mul_(scale(flat, dropout))
            if ctx.needs_input_grad[0]:
                dx = drop_gradient(u @ d, dropout, mask)
        else:
            dd = _over_tokens(u, flat)
            if ctx.needs_input_grad[0]:
                dx = u @ d
        if dx is not None:  # the frozen weight's part last, added where the other already is
            dx = dx.addmm_(g, weight).view(x.shape)
        da, db, ds = dd * s[:, None], _over_tokens(h, g).T, (dd * a).sum(1)
        return dx, None, None, None, None, da.to(a.dtype), db.to(b.dtype), ds.to(s.dtype)


def _over_tokens(ranks: Tensor, features: Tensor) -> Tensor:
    """ranks^T features [r, n], the sum over tokens of [tokens, r] and [tokens, n].

    A CPU takes 1.4 to 1.8 times as long for the order that is slower: this one for large results, the other for small.
    """
    if ranks.is_cuda or ranks.shape[1] * features.shape[1] < 2**14:
        return ranks.T @ features
    return (features.T @ ranks).T


def _weighted(x: Tensor, a: Tensor, s: Tensor, dropout: float) -> Tensor:
    """D [r, d_in] in x's type, with what dropout leaves to be multiplied by."""
    if dropout:
        s = s * scale(x, dropout)
    return (a * s[:, None]).to(x.dtype)


def _differentiable(
    gradient: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, s: Tensor, dropout: float, seed: int
) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, a, b and s, made of operations that autograd can differentiate again."""
    inputs = [tensor.view_as(tensor) for tensor in (x, a, b, s)]  # so that autograd stops here
    x, a, b, s = inputs
    hidden = linear(drop(x, dropout, seed)[0] if dropout else x, _weighted(x, a, s, dropout))
    y = linear(x, weight) + linear(hidden, b.to(x.dtype))
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)
