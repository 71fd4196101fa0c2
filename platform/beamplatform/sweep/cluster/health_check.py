"""Finds what is wrong with a cluster, within seconds and before any work is sent to it."""

from __future__ import annotations

import json
import os
import platform
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.errors import UserError, first_line
from beamplatform.io.storage import is_uri
from beamplatform.sweep.cluster.autoscaler import autoscaler_limits

if TYPE_CHECKING:
    from beamplatform.config.sections import TrainingSection

SECONDS = 5.0
"""How long a cluster, or one of its nodes, may take to answer."""


def check_cluster(training: TrainingSection) -> None:
    """Check the cluster that RAY_ADDRESS names, if the variable is set.

    Raises:
        UserError: no cluster answers, its version of Ray or Python differs, or it lacks a GPU that is needed.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return
    head = _reached(address)
    from ray.exceptions import AuthenticationError

    outcomes: list[BaseException | None] = []

    def look() -> None:
        try:
            _look(head, address, training)
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    # A server that listens but is no Ray head keeps its client waiting for most of a minute.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(SECONDS)
    error = outcomes[0] if outcomes else TimeoutError(f"no answer in {SECONDS:.0f} s")
    if isinstance(error, UserError):
        raise error
    # Ray reads its token later, when it connects, and then says what is wrong with it.
    if error is not None and not isinstance(error, AuthenticationError):
        raise _nobody(address, f"what listens there is no Ray head: {first_line(error)}") from None


def _look(head: str, address: str, training: TrainingSection) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    gcs = GcsClient(address=head)
    _check_versions(gcs, address)
    if training.device == "gpu":
        _check_gpus(gcs, address)


def check_storage(storage: str) -> None:
    """Check that all nodes of the connected cluster see the same storage. A URI is the same for all nodes.

    Raises:
        UserError: a node sees a different folder of that name, or none.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if is_uri(storage):
        return
    own_id = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own_id]
    if not others:
        return
    marker = Path(storage) / f"seen-{uuid.uuid4().hex}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        from pathlib import Path

        return Path(path).exists()

    try:
        answers = {
            node["NodeManagerAddress"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker))
            for node in others
        }
        deadline = time.monotonic() + 4 * SECONDS  # a node may have to start its first process
        for name, answer in answers.items():
            try:
                seen = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
            except RayError:
                continue  # a node that does not answer has another fault, which Ray reports
            if not seen:
                raise UserError(
                    f"--storage {storage}: the node {name} does not see this folder; give one that all nodes share, or "
                    "a URI such as s3://BUCKET/sweeps"
                )
    finally:
        marker.unlink(missing_ok=True)


def _reached(address: str) -> str:
    """Return the head's address as host:port, after checking that something listens there."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: a sweep's driver runs on a node of its cluster, not through Ray's client; start "
            "it there with `ray submit` or `ray exec`, and RAY_ADDRESS=auto"
        )
    try:
        head = canonicalize_bootstrap_address_or_die(address)
        host, _, port = head.rpartition(":")
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except ConnectionError:
        raise _nobody(address, "no Ray runs there") from None
    except (OSError, ValueError) as error:
        raise _nobody(address, str(error)) from None
    return str(head)


def _nobody(address: str, why: str) -> UserError:
    return UserError(
        f"RAY_ADDRESS={address}: no cluster answers ({why}); start it (ray up cluster.yaml), correct the address, or "
        "unset RAY_ADDRESS to use this machine alone"
    )


def _check_versions(gcs: Any, address: str) -> None:
    import ray
    from ray._common.usage import usage_constants
    from ray._private import ray_constants

    text = gcs.internal_kv_get(
        usage_constants.CLUSTER_METADATA_KEY, namespace=ray_constants.KV_NAMESPACE_CLUSTER, timeout=SECONDS
    )
    metadata = json.loads(text or b"{}")
    for name, ours in (("ray", ray.__version__), ("python", platform.python_version())):
        theirs = metadata.get(f"{name}_version", ours)
        if theirs != ours:
            raise UserError(
                f"RAY_ADDRESS={address}: the cluster runs {name.capitalize()} {theirs}, and this machine {ours}; "
                "install the same on both (cluster.yaml pins them)"
            )


def _check_gpus(gcs: Any, address: str) -> None:
    alive = [node for node in gcs.get_all_node_info(timeout=SECONDS).values() if node.state == 0]
    if not autoscaler_limits().grows(len(alive)) and not any(node.resources_total.get("GPU", 0) for node in alive):
        raise UserError(
            f"training.device is gpu, and none of the {len(alive)} nodes of the cluster at {address} has one; add "
            "nodes with GPUs, choose another --preset, or try --set training.device=cpu"
        )
