"""An adapted layer as one autograd operation: y = W0 x + b + B (s * (A dropout(x))).

Here s is the vector of rank weights times the scaling. The plain path (`BeamVariant.forward`) makes three more passes
over a tensor [tokens, d_out]: for B's product, the scaling and the sum. The fused operation multiplies s into A, which
is small, and accumulates the adapter's product into the frozen layer's output. Its gradients are written by hand, with
g the gradient with respect to y:

    D = s * A     h = x D^T     y = x W0^T + b + h B^T
    u = g B       dx = g W0 + u D       dB = g^T h       dD = u^T x       dA = s * dD       ds = sum of dD * A over d_in

The frozen weights need no gradient. Only x, h and the parameters are saved for the backward pass, which regenerates
the dropout mask from a seed. The forward pass draws this seed from PyTorch's default generator.

No result is cached between calls. (An earlier version computed q, k and v together in whichever of the three layers
was called first. The cached results for the two later layers were wrong if anything had changed between the calls.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from beamlora.dropout import drop, drop_gradient, scale


class Operands(NamedTuple):
    """The tensors of one adapted layer.

    Attributes:
        weight: the frozen weight W0 [d_out, d_in].
        bias: the frozen bias [d_out], or None.
        a: A [r, d_in], in x's type or float32.
        b: B [d_out, r], in a's type.
        s: the rank weights (Eq. 5) times the scaling [r], in a's type or float32.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    s: Tensor


def beam_product(x: Tensor, layer: Operands, dropout: float) -> Tensor:
    """Return the layer's output [..., d_out].

    Args:
        x: the input [..., d_in], in the type of the frozen weight. All products are computed in this type.
        layer: the layer's tensors.
        dropout: the dropout rate of the adapter's input, below 1.
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
        y = x.new_empty(*x.shape[:-1], len(weight))  # the output is no view, so that models may modify it in place
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
        if torch.is_grad_enabled():  # create_graph=True: the gradients must be differentiable
            dx, da, db, ds = _differentiable(gradient, x, weight, a, b, s, dropout, ctx.seed)
            return dx, None, None, None, None, da, db, ds
        flat, g = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        # B's rows are short, so a CPU multiplies faster by B in column-major order (at r = 4 more than twice as fast).
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
        if dx is not None:  # accumulate the frozen weight's contribution into the adapter's
            dx = dx.addmm_(g, weight).view(x.shape)
        da, db, ds = dd * s[:, None], _over_tokens(h, g).T, (dd * a).sum(1)
        return dx, None, None, None, None, da.to(a.dtype), db.to(b.dtype), ds.to(s.dtype)


def _over_tokens(ranks: Tensor, features: Tensor) -> Tensor:
    """Return ranks^T features [r, n], the product over tokens of `ranks` [tokens, r] and `features` [tokens, n].

    On a CPU `ranks.T @ features` is faster for small results, and `(features.T @ ranks).T` for large ones. The slower
    order takes 1.4 to 1.8 times as long.
    """
    if ranks.is_cuda or ranks.shape[1] * features.shape[1] < 2**14:
        return ranks.T @ features
    return (features.T @ ranks).T


def _weighted(x: Tensor, a: Tensor, s: Tensor, dropout: float) -> Tensor:
    """Return D = s * A [r, d_in] in x's type, multiplied by dropout's remaining scale factor."""
    if dropout:
        s = s * scale(x, dropout)
    return (a * s[:, None]).to(x.dtype)


def _differentiable(
    gradient: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, s: Tensor, dropout: float, seed: int
) -> tuple[Tensor | None, ...]:
    """Return the gradients with respect to x, a, b and s, computed so that autograd can differentiate them again."""
    inputs = [tensor.view_as(tensor) for tensor in (x, a, b, s)]  # new graph nodes, so that autograd.grad stops at them
    x, a, b, s = inputs
    hidden = linear(drop(x, dropout, seed)[0] if dropout else x, _weighted(x, a, s, dropout))
    y = linear(x, weight) + linear(hidden, b.to(x.dtype))
    differentiated = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(y, differentiated, gradient, create_graph=True))
    return tuple(next(gradients) if tensor.requires_grad else None for tensor in inputs)
