"""Everything private of Ray's that this project uses: the public way that was tried, and why it does not do.

Ray may change any of it in any release. After an upgrade, a failure here says what is gone, what it was for, and where
it is used.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import ray


@dataclass(frozen=True)
class Private:
    """One name of a private module.

    Attributes:
        module, name: what is imported.
        purpose: what it is used for.
        public: the public way, and why it does not do.
        members: attributes that are called, read or overridden.
    """

    module: str
    name: str
    purpose: str
    public: str
    members: tuple[str, ...] = ()


TRAIN = "ray.train.v2._internal"
PRIVATE = (
    Private(
        f"{TRAIN}.callbacks.placement_group_callback", "PlacementGroupCleanerCallback",
        "leaving Ray's own cleaner of placement groups out of a Train run",
        "RunConfig(callbacks=...) adds some and removes none; Ray's own is a detached actor that outlives the sweep",
    ),
    Private(
        f"{TRAIN}.exceptions", "WorkerHealthCheckFailedError", "telling a lost worker from an error of the training",
        "ray.train.WorkerGroupError holds it among `worker_failures`, and exports no type to compare it with",
    ),
    Private(
        f"{TRAIN}.exceptions", "WorkerHealthCheckTimeoutError", "telling a worker that hangs from one with an error",
        "as WorkerHealthCheckFailedError",
    ),
    Private(
        f"{TRAIN}.execution.failure_handling", "DefaultFailurePolicy",
        "trying a run with lost workers again, and one whose error would come again not",
        "FailureConfig(max_failures=N) counts failures and cannot look at them", ("make_decision",),
    ),
    Private(
        f"{TRAIN}.execution.failure_handling", "FailureDecision", "what such a policy answers",
        "FailureConfig has no decision", ("RAISE",),
    ),
    Private(
        f"{TRAIN}.execution.scaling_policy", "ElasticScalingPolicy",
        "allowing only those numbers of workers that share the global batch evenly",
        "ScalingConfig(num_workers=(least, most)) allows every number between the two", ("_count_possible_workers",),
    ),
    Private(
        "ray._private.state", "state", "who made a placement group, and whether that actor is dead",
        "ray.util.placement_group_table() says neither; ray.util.state.list_placement_groups asks the dashboard, which "
        "may be away", ("_connect_and_get_accessor", "actor_table"),
    ),
    Private(
        "ray._raylet", "GcsClient", "asking a cluster for its versions and nodes within seconds, before joining it",
        "ray.init waits most of a minute for what is no cluster, and does not say which version the cluster has",    ),
    Private(
        "ray._private.services", "canonicalize_bootstrap_address_or_die", "the host and port behind RAY_ADDRESS=auto",
        "only ray.init resolves `auto`, and it joins at once",
    ),
    Private(
        "ray._common.usage", "usage_constants", "the key below which a cluster keeps its versions",
        "`ray.cluster_resources` and `ray.nodes` say no version, and need ray.init", ("CLUSTER_METADATA_KEY",),
    ),
    Private(
        "ray._private", "ray_constants", "the name space of that key", "as usage_constants", ("KV_NAMESPACE_CLUSTER",),
    ),
)  # fmt: skip
OVERRIDDEN = ("_create_default_callbacks", "_initialize_and_run_controller")
"""Private methods of ray.train.torch.TorchTrainer that `beamplatform.training.failure_policy` overrides."""


@pytest.mark.parametrize("one", PRIVATE, ids=lambda one: one.name)
def test_it_is_there(one: Private) -> None:
    what = f"Ray {ray.__version__}: {one.module}.{one.name}, used for {one.purpose} (public way: {one.public})"
    try:
        found = getattr(import_module(one.module), one.name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{what}: is gone: {error}")
    gone = [member for member in one.members if not hasattr(found, member)]
    assert not gone, f"{what}: has no {', '.join(gone)} any more"


@pytest.mark.parametrize("method", OVERRIDDEN)
def test_the_trainer_still_calls_what_is_overridden(method: str) -> None:
    import inspect

    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert hasattr(DataParallelTrainer, method), f"Ray {ray.__version__}: TorchTrainer has no {method} any more"
    calls = len(re.findall(rf"\bself\.{method}\(", inspect.getsource(DataParallelTrainer)))
    assert calls, f"Ray {ray.__version__}: TorchTrainer no longer calls its {method}"


def test_the_list_is_all(root: Path) -> None:
    found = set()
    for file in [*root.glob("platform/**/*.py"), *root.glob("pipelines/*.py"), *root.glob("beamlora/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and re.match(r"ray\..*\b_|ray\._", node.module or ""):
                found |= {(node.module, alias.name) for alias in node.names}
    assert found == {(one.module, one.name) for one in PRIVATE}
