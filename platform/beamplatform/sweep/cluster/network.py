"""Which of a node's networks its workers meet on."""

from __future__ import annotations

import os


def meet_on_rays_network() -> None:
    """Tell gloo, which workers on CPUs talk by, the network on which Ray's nodes know each other.

    By itself it takes the one that the host's name leads to. That is loopback on Debian and Ubuntu (127.0.1.1), where
    no worker on another node answers. (NCCL leaves loopback out.)
    """
    import psutil
    from ray.util import get_node_ip_address

    here = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if name != "lo" and any(address.address == here for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
