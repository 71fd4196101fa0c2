"""What the server of `forked` imports before it forks."""

from __future__ import annotations

import preloaded  # noqa: F401
import ray.train.torch
import ray.tune  # noqa: F401
