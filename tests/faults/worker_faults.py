"""Kills a worker of a trial with SIGKILL at a chosen place: for Ray's `worker_process_setup_hook`.

The file that the hook is made for says, for each trial's checkpoint location, where: {location: [moment, step,
worker]}. A moment is "step" (after the optimizer step), "beam" (the ranks of a beam step are replaced, its scores not
yet) or "checkpoint" (this worker's files are written, the checkpoint is not complete). Each trial is killed once; the
step that its next workers go on from is written beside the note of that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def fault_hook(faults: Path) -> Callable[[], None]:
    """The hook; it travels to the workers as it is, so that it imports what it needs."""
    path = str(faults)

    def hook() -> None:
        # Called in every process of Ray's: what is heavy is imported where a trial's worker asks who it is.
        import ray.train

        get_context = ray.train.get_context

        def get_context_and_install():
            ray.train.get_context = get_context
            install(path, get_context().get_world_rank())
            return get_context()

        ray.train.get_context = get_context_and_install

    def install(path: str, worker: int) -> None:
        import hashlib
        import json
        import os
        import signal
        from pathlib import Path

        from beamlora.exchange import RankExchange
        from beamplatform.training import checkpoint, checkpoint_store, loop, run

        now = {"location": "", "step": 0}

        def done(location: str) -> Path:
            return Path(path).with_name("killed-" + hashlib.sha256(location.encode()).hexdigest()[:16])

        def perhaps_die(moment: str) -> None:
            wanted = json.loads(Path(path).read_text()).get(now["location"])
            if wanted != [moment, now["step"], worker]:
                return
            if not done(now["location"]).exists():
                done(now["location"]).write_text(json.dumps(wanted))
                os.kill(os.getpid(), signal.SIGKILL)

        store, load = checkpoint_store.CheckpointStore, run.load_checkpoint
        make, add, replace, describe = store.__init__, loop.Meter.add, RankExchange.replace, checkpoint.describe

        def made(self, location):
            make(self, location)
            now["location"] = location

        def loaded(*arguments):
            progress = load(*arguments)
            now["step"] = progress.step if progress else 0
            if done(now["location"]).exists():
                done(now["location"]).with_suffix(".resumed").write_text(str(now["step"]))
            return progress

        def added(self, *arguments):
            add(self, *arguments)
            # The meter is told of a step before the method is: a beam step of this step comes after.
            now["step"] += 1
            perhaps_die("step")

        def replaced(self, *arguments, **options):
            found = replace(self, *arguments, **options)
            perhaps_die("beam")
            return found

        def described(file):
            found = describe(file)
            perhaps_die("checkpoint")
            return found

        store.__init__, run.load_checkpoint = made, loaded
        loop.Meter.add, RankExchange.replace, checkpoint.describe = added, replaced, described

    return hook
