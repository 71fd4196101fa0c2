"""What the workers of a sharded optimizer say to each other in a beam step."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def worker_count(group: Any = None) -> int:
    """How many workers train together; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def join_parts(parts: Tensor, group: Any = None) -> Tensor:
    """Put together a float32 tensor of which each worker holds some elements, the others zero; in place, exactly.

    The bits are summed as integers: a sum of floats would turn -0.0 into 0.0. One all-reduce.
    """
    if worker_count(group) > 1:
        dist.all_reduce(parts.view(torch.int32), group=group)
    return parts


def check_agreement(what: str, decision: Any, device: torch.device, group: Any = None) -> None:
    """Compare a hash of `decision` (plain values) over all workers.

    Raises:
        RuntimeError: on every worker, when they differ.
    """
    if worker_count(group) == 1:
        return
    digest = hashlib.sha256(repr(decision).encode()).digest()
    own = torch.frombuffer(bytearray(digest[:8]), dtype=torch.int64).to(device)
    found = [torch.empty_like(own) for _ in range(worker_count(group))]
    dist.all_gather(found, own, group=group)
    differing = [worker for worker, other in enumerate(found) if not torch.equal(other, found[0])]
    if differing:
        raise RuntimeError(
            f"{what}: the workers do not agree (workers {', '.join(map(str, differing))} differ from worker 0), so "
            "their scores or seeds differ: they are not replicas of one model any more. Go on from the last checkpoint"
        )
