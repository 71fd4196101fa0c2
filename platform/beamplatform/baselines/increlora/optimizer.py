"""AdamW in which every element counts its own steps, for parameters that start to train in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class GrowingAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with a separate bias correction and warm-up for each element.

    An element starts at its first gradient that is not zero. Before that it does not change, not even by weight decay.
    From its start on, an element has the bias correction of a newly created parameter, and its learning rate rises
    linearly over `new_warmup` steps.

    Elements that start in the first two steps have no warm-up of their own. The second step is included because, in a
    product B A, one factor may get a gradient only after the other factor has moved.

    Every state tensor but the step count has the parameter's shape, so that DeepSpeed can shard it and a checkpoint can
    hold it.

    Args:
        params: parameters or groups, as for torch's optimizers.
        new_warmup: number of warm-up steps for elements that start after step 2.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        new_warmup: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "new_warmup": new_warmup}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter)
            state["age"] = torch.zeros_like(parameter, dtype=torch.float32)  # bfloat16 cannot count beyond 256
        beta1, beta2 = group["betas"]
        average, square, age = state["exp_avg"], state["exp_avg_sq"], state["age"]
        state["step"] += 1
        step = float(state["step"])
        started = (age > 0) | (gradient != 0)
        age.add_(started)
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Elements that have not started have moments of 0, so their update is 0. The clamps avoid a division by 0.
        correction1 = (1 - beta1**age).clamp(min=1 - beta1)
        correction2 = (1 - beta2**age).clamp(min=1 - beta2)
        update = average / correction1 / ((square / correction2).sqrt() + group["eps"])
        rate = started * group["lr"]
        if group["new_warmup"]:
            rate = rate * torch.where(step - age > 1, (age / group["new_warmup"]).clamp(max=1), 1.0)
        parameter.mul_(1 - rate * group["weight_decay"]).sub_(rate * update)
