"""Who called, where proxies stand in between: for the log alone. No right ever follows from it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

MAX_HOPS = 32
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def find_client(peer: str, forwarded: bytes, trusted: Sequence[Network]) -> str:
    """The nearest address that is not a trusted proxy's, read from the right of `X-Forwarded-For`.

    What stands further left was written by that address itself, and may be a lie.
    """
    client = peer
    for word in reversed(forwarded.decode("latin-1").split(",")[-MAX_HOPS:]):
        if not is_within(client, trusted):
            break
        try:
            client = str(ipaddress.ip_address(word.strip()))
        except ValueError:
            break
    return client


def is_within(client: str, networks: Sequence[Network]) -> bool:
    """Whether an address lies in one of the networks; what is no address lies in none."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    return any(address in network for network in networks)
