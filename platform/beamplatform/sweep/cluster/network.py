"""Chooses the network over which a node's workers connect to the workers of other nodes."""

from __future__ import annotations

import os


def meet_on_rays_network() -> None:
    """Make gloo, which connects workers on CPUs, use the network that connects Ray's nodes.

    By default, gloo uses the network of the host name's address. On Debian and Ubuntu that is loopback (127.0.1.1),
    where no worker on another node answers. (NCCL, for workers on GPUs, leaves loopback out.)
    """
    import psutil
    from ray.util import get_node_ip_address

    node_address = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if name != "lo" and any(address.address == node_address for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
