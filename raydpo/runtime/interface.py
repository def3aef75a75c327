"""Through which network interface a rank reaches those of other nodes: the one that has its node's own Ray address.

Comes in: that address. Goes out: the variables in which gloo and NCCL look for a name of an interface. Decision: left alone,
gloo binds to what the host name resolves to, which is loopback on many machines, and NCCL to whichever interface it finds
first. A variable that is set on the node stays: there may be a faster network that Ray knows nothing of.
"""

from __future__ import annotations

import os


def interface_of(address: str) -> str | None:
    """Name of this machine's interface with `address` ("10.0.0.4"); None where there is none."""
    import psutil

    for name, there in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in there):
            return str(name)
    return None


def outward_variables(address: str) -> dict[str, str]:
    """Environment that gloo and NCCL meet other nodes with; empty where no interface has `address`."""
    name = interface_of(address)
    if name is None:
        return {}
    variables = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}  # "=": this one, not those that begin so
    return {key: value for key, value in variables.items() if key not in os.environ}
