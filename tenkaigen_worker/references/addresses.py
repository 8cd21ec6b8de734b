"""Which addresses a URL that a stranger gives may lead to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address

_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Stands for an IPv4 address where a network has no IPv4 of its own (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: IPAddress) -> bool:
    """Whether an address lies in the public internet, by whichever of its forms it is written.

    Tunnels to IPv4 that nobody has needed for years, 6to4 and Teredo, do not: versions of Python differ about them.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    tunnel = address.sixtofour or address.teredo
    return address.is_global and address in _GLOBAL_UNICAST and tunnel is None
