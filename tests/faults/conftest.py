"""Real runs that are killed, interrupted and starved."""

from __future__ import annotations

from collections.abc import Iterator

import forked_workers
import pytest


@pytest.fixture(scope="module", autouse=True)
def workers_are_forked() -> Iterator[None]:
    """Ray's workers here need not import all libraries anew."""
    with forked_workers.use():
        yield
