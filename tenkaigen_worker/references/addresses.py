"""Which addresses a URL that a stranger gives may lead to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address

_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Stands for an IPv4 address where a network has no IPv4 of its own (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: IPAddress) -> bool:
    """Whether an address lies in the public internet, by whichever of its forms it is written."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    inner = _carried(address)
    if not all(map(is_public, inner)):
        return False
    if address.ipv4_mapped is not None or address in _NAT64:
        return True
    return address.is_global and address in _GLOBAL_UNICAST


def _carried(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses inside an IPv6 one: mapped, NAT64, 6to4 (RFC 3056), Teredo (RFC 4380)."""
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [IPv4Address(int(address) & 0xFFFF_FFFF)]
    if address.sixtofour is not None:
        return [address.sixtofour]
    return list(address.teredo or ())
