"""Ray's workers that are forked are Ray's workers."""

from __future__ import annotations

import os

import forked_workers
import pytest
import ray
from waiting import wait_until


def test_they_have_their_own_environment_and_ray_sees_their_end() -> None:
    @ray.remote
    class Actor:
        def look(self) -> tuple[int, bool, str | None, bool]:
            import sys

            return os.getpid(), "deepspeed" in sys.modules, os.environ.get("OWN"), os.getpgid(0) == os.getpid()

        def die(self) -> None:
            os.kill(os.getpid(), 9)

    with forked_workers.use():
        ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"OWN": "1"}})
    try:
        pids = set()
        for _ in range(2):
            actor = Actor.remote()
            pid, loaded, own, leads = ray.get(actor.look.remote())
            assert loaded and own == "1" and leads
            pids.add(pid)
            with pytest.raises(ray.exceptions.ActorDiedError):
                ray.get(actor.die.remote())
            wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
        assert len(pids) == 2
    finally:
        ray.shutdown()
