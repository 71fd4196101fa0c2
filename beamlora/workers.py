"""Communication between the workers of a sharded optimizer in a beam step."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def worker_count(group: Any = None) -> int:
    """Return the number of workers in the group, which is 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def join_parts(parts: Tensor, group: Any = None) -> Tensor:
    """Join a float32 tensor in place, exactly, with one all-reduce, and return it.

    Each worker holds some elements of the tensor, and zeros at all other positions. The bits are summed as integers,
    because a sum of floats would turn -0.0 into 0.0.
    """
    if worker_count(group) > 1:
        dist.all_reduce(parts.view(torch.int32), group=group)
    return parts


def check_agreement(what: str, decision: Any, device: torch.device, group: Any = None) -> None:
    """Check that `decision` (plain values) has the same hash on all workers.

    Raises:
        RuntimeError: the hashes differ. Every worker raises this error.
    """
    if worker_count(group) == 1:
        return
    digest = hashlib.sha256(repr(decision).encode()).digest()
    local_hash = torch.frombuffer(bytearray(digest[:8]), dtype=torch.int64).to(device)
    hashes = [torch.empty_like(local_hash) for _ in range(worker_count(group))]
    dist.all_gather(hashes, local_hash, group=group)
    differing = [worker for worker, other in enumerate(hashes) if not torch.equal(other, hashes[0])]
    if differing:
        raise RuntimeError(
            f"{what}: the workers do not agree (workers {', '.join(map(str, differing))} differ from worker 0), so "
            "their scores or seeds differ: they are not replicas of one model any more. Go on from the last checkpoint"
        )
