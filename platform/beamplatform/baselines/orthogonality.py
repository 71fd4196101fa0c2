"""The regulariser of AdaLoRA and IncreLoRA, as the gradient that it adds.

Both add |A A^T - I|_F + |B^T B - I|_F to the loss. Under ZeRO-3 factors are whole only inside the model's forward and
backward pass, so that there is nothing to compute it from outside; its gradient has a closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonality_gradient(a: Tensor) -> Tensor:
    """Gradient of |A A^T - I|_F at A [r, d]: 2 (A A^T - I) A / |A A^T - I|_F."""
    excess = a @ a.T - torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    return 2 * excess @ a / torch.linalg.norm(excess).clamp(min=torch.finfo(a.dtype).tiny)
