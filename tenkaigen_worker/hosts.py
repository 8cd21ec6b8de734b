"""Which hosts are this machine, and which are near."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_near(host: str) -> bool:
    """Whether a host is this machine, or on a network of our own: a private address, or a name without a dot."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host
