"""By which name a limit knows a caller: its network address, of IPv6 the network.

Out of scope: how long addresses are remembered (never on disk).
"""

from __future__ import annotations

import ipaddress

#: A household or a server has as many addresses of IPv6 as it likes; it has one network.
IPV6_NETWORK_BITS = 64


def network(host: str) -> str:
    """The address that a limit holds for.

    Args:
        host: an address as text, with or without brackets and zone; any other text is returned without them.
    """
    host = host.strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))
