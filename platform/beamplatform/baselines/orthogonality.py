"""The gradient of the orthogonality regulariser of AdaLoRA and IncreLoRA.

Both methods add |A A^T - I|_F + |B^T B - I|_F to the loss. Under ZeRO-3 the factors are whole only inside the model's
forward and backward passes, so the regulariser cannot be computed next to the loss. Its gradient has a closed form,
which is added to the gradients instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonality_gradient(a: Tensor) -> Tensor:
    """Return the gradient of |A A^T - I|_F at A [r, d], which is 2 (A A^T - I) A / |A A^T - I|_F."""
    excess = a @ a.T - torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    return 2 * excess @ a / torch.linalg.norm(excess).clamp(min=torch.finfo(a.dtype).tiny)
