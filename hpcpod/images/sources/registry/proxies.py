# SPDX-License-Identifier: Apache-2.0
"""Which proxy a host is asked through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.  Pure.

There is no standard; what curl(1), Go's programs and Python agree on is taken: lower case before upper case,
domains with or without a leading dot, addresses, networks (CIDR), ``*``, an optional port.  As Go does it,
this machine itself is never asked through a proxy.
"""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def proxy_for(environment: Mapping[str, str], scheme: str, host: str, port: int) -> str:
    """The URL of the proxy, with credentials where it has some; empty for none.

    scheme: ``http`` or ``https``.  host: name or address, IPv6 without brackets.
    """
    url = _variable(environment, f"{scheme}_proxy") or _variable(environment, "all_proxy")
    if not url or _is_local(host) or excluded(_variable(environment, "no_proxy"), host, port):
        return ""
    return url if "://" in url else f"http://{url}"


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _is_local(host: str) -> bool:
    address = _address(host)
    return host.lower() in LOCAL or (address is not None and address.is_loopback)


def excluded(patterns: str, host: str, port: int) -> bool:
    """Whether NO_PROXY names a host."""
    name = host.lower().rstrip(".")
    return any(_matches(pattern.strip().lower(), name, port) for pattern in patterns.split(","))


def _matches(pattern: str, name: str, port: int) -> bool:
    if not pattern:
        return False
    if pattern == "*":
        return True
    address = _address(name)
    if "/" in pattern or _address(pattern.strip("[]")) is not None:
        return address is not None and _in_network(pattern.strip("[]"), address)
    domain, colon, number = pattern.rpartition(":")
    if colon and number.isdigit():
        if int(number[:6]) != port:
            return False
        pattern = domain.strip("[]")
        if _address(pattern) is not None:
            return address == _address(pattern)
    domain = pattern.removeprefix("*").lstrip(".")
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    import ipaddress

    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _in_network(pattern: str, address: IPv4Address | IPv6Address) -> bool:
    import ipaddress

    try:
        return address in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False
