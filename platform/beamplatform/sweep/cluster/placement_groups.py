"""Gives back the cores and GPUs that a Train run leaves reserved when it is ended from outside.

Ray ends an actor whose owner is dead. A trial's actor owns the controller of its Train run, and the controller owns the
workers. But the placement group stays and holds the cores and GPUs until the whole job ends.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 60.0


def held_resources() -> dict[str, float]:
    """Return the resources that this job's placement groups hold for the workers of its trials, by name."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    held: Counter[str] = Counter()
    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        if group.creator_job_id == job and group.state == PlacementGroupTableData.CREATED:
            for bundle in group.bundles:
                held.update({name: amount for name, amount in bundle.unit_resources.items()})
    return dict(held)


def remove_orphaned_groups() -> int:
    """Remove the placement groups whose creator is dead; return how many groups this job's actors still hold.

    Ray removes a placement group only with its job, not with the actor that made it. This function looks at the present
    state instead of at events. So it does not matter how, when or in which phase of a (re)start a Train run's
    controller has died.
    """
    # The public table does not say who made a group.
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    held = 0
    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        creator = ray.ActorID(group.creator_actor_id)
        # The driver's groups, which are Tune's own, have no creating actor.
        if group.creator_job_id != job or creator.is_nil() or group.state == PlacementGroupTableData.REMOVED:
            continue
        if group.creator_actor_dead or state.actor_table(creator.hex()).get("State") == "DEAD":
            log.info("removing placement group %s, whose Train run has ended", group.placement_group_id.hex())
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
        else:
            held += 1
    return held


def settle() -> None:
    """Wait until the ended trials hold no resources. Their last processes may still be ending."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while held := remove_orphaned_groups():
        if time.monotonic() > deadline:
            log.warning("%d placement groups are still held by trials that have ended", held)
            return
        time.sleep(0.1)


class Reaper(Callback):
    """Removes the placement groups of ended trials while others run, so that the next trials can start."""

    def __init__(self) -> None:
        self._next = 0.0

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if time.monotonic() >= self._next:
            remove_orphaned_groups()
            self._next = time.monotonic() + _LOOK_SECONDS
