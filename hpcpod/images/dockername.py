# SPDX-License-Identifier: Apache-2.0
"""Names of images in registries: ``[HOST[:PORT]/]PATH[:TAG][@DIGEST]``.  Pure.

The grammar is that of github.com/distribution/reference; a host is told from a path as Docker and Podman do:
its first component holds a dot or a colon, or is ``localhost``.
"""

from __future__ import annotations

from hpcpod.frozen import frozen

NAME_MAX = 255
TAG_MAX = 128
HUB = "docker.io"
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALPHA = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TAG_FIRST = _ALPHA | {"_"}
_TAG_LATER = _TAG_FIRST | frozenset(".-")
_PORT_MAX = 65535


@frozen
class DockerName:
    """host: with its port, empty for a short name.  path: repository.  tag, digest: empty for none."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        host = f"{self.host}/" if self.host else ""
        tag = f":{self.tag}" if self.tag else ""
        return f"{host}{self.path}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse_name(text: str, *, short: bool) -> DockerName | None:
    """The name in text; None for what is none.  The digest is split off, not checked.

    short: a name without a host stays one; otherwise it is Docker Hub's, as in ``docker://debian``, which
    means docker.io/library/debian.
    """
    located, at, digest = text.partition("@")
    if at and not digest:
        return None
    slash = located.rfind("/")
    colon = located.find(":", slash + 1)
    tag = located[colon + 1 :] if colon >= 0 else ""
    name = located[:colon] if colon >= 0 else located
    if colon >= 0 and not _is_tag(tag):
        return None
    host, path = _split_host(name)
    host = plain_host(host)
    if not path or len(name) > NAME_MAX or not all(map(_is_component, path.split("/"))):
        return None
    if host and not _is_host(host):
        return None
    if not host and not short:
        host, path = HUB, path if "/" in path else f"library/{path}"
    elif host in (HUB, f"index.{HUB}") and "/" not in path:
        path = f"library/{path}"
    return DockerName(HUB if host == f"index.{HUB}" else host, path, tag, digest)


def plain_host(host: str) -> str:
    """A host as every spelling of it is written: in lower case, its port without leading zeros."""
    name, colon, port = host.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        return host.lower()
    return f"{name.lower()}:{int(port)}"


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "", name


def _is_tag(tag: str) -> bool:
    return tag[:1] in _TAG_FIRST and len(tag) <= TAG_MAX and _TAG_LATER.issuperset(tag) if tag else False


def _is_component(text: str) -> bool:
    """Lower-case letters and digits, with single ``.``, one or two ``_``, or any number of ``-`` between."""
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    separator = ""
    for character in text:
        if character in _LOWER:
            separator = ""
            continue
        separator += character
        if separator not in (".", "_", "__") and separator.strip("-"):
            return False
    return True


def _is_host(host: str) -> bool:
    if host.startswith("["):  # an IPv6 address
        address, bracket, port = host[1:].partition("]")
        plain = bracket and address and frozenset("0123456789abcdefABCDEF:").issuperset(address)
        return bool(plain) and (not port or (port[0] == ":" and _is_port(port[1:])))
    name, colon, port = host.partition(":")
    labels = name.split(".")
    good = all(
        label and _ALPHA.issuperset(label.replace("-", "")) and label[0] != "-" and label[-1] != "-"
        for label in labels
    )
    return good and (not colon or _is_port(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) <= _PORT_MAX
