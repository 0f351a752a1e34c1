# SPDX-License-Identifier: Apache-2.0
"""Image references as users write them: ``oci:DIR[:TAG][@DIGEST]``, ``aci:FILE[@DIGEST]`` and the like.

The form of those of layouts is that of containers-transports(5): the path ends at the first colon, so it
cannot hold one; the tag is what the layout's index calls ``org.opencontainers.image.ref.name``.  Files that
are one image have no tag.
"""

from __future__ import annotations

from hpcpod.errors import ImageReferenceError
from hpcpod.frozen import frozen
from hpcpod.log import shown

TRANSPORTS = ("oci", "oci-archive", "aci", "sif")
SUPPORTED = (
    "supported: oci:DIRECTORY[:TAG][@sha256:HEX], oci-archive:FILE[:TAG][@sha256:HEX], "
    "aci:FILE[@sha512-HEX], sif:FILE[@sha256:HEX]"
)
TAG_MAX = 255

# Sets, not regular expressions: compiling those takes longer than all else that is done with a reference.
_HEX = frozenset("0123456789abcdef")
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_WORD = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_TAG_LATER = _WORD | frozenset("./:+-")
_TRANSPORT_LATER = _LOWER | frozenset("0123456789+.-")
_NAME_FIRST = _LOWER | frozenset("0123456789")
_NAME = _NAME_FIRST | frozenset("./_-")
_SKOPEO = ("docker", "docker-archive", "docker-daemon", "dir", "containers-storage")
_OTHERS = ("library", "shub", "oras", "file", "http", "https", "ostree", "tarball")
_SINGLE = {"aci": "sha512", "sif": "sha256"}
"""Transports of files that are one image, and what its digest is made by."""
_DIGEST_DIGITS = {"sha256": 64, "sha512": 128}


@frozen
class Reference:
    """A parsed reference.

    transport: one of TRANSPORTS.  path: as written.  tag: empty for none.  digest: empty for none.
    """

    transport: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.transport}:{self.path}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Whether text is a digest of an algorithm that is trusted here, and nothing else.

    The whole string is matched, so that a digest can be used as a file name without further thought.
    """
    algorithm, _, digits = text.partition(":")
    return len(digits) == _DIGEST_DIGITS.get(algorithm) and _HEX.issuperset(digits)


def parse_reference(text: str) -> Reference:
    """Split a reference into its parts.  Raises ImageReferenceError."""
    transport, colon, rest = text.partition(":")
    if not colon or transport[:1] not in _LOWER or not _TRANSPORT_LATER.issuperset(transport):
        raise ImageReferenceError(f"image reference {shown(text)}: no transport", hint=_hint_for(text))
    if transport not in TRANSPORTS:
        raise ImageReferenceError(
            f"image reference {shown(text)}: transport {shown(transport)} is not supported",
            hint=f"{SUPPORTED}; {_copying_from(text)} makes one",
        )
    if transport in _SINGLE:
        return _single(transport, rest, text)
    located, digest = _split_digest(rest, text)
    path, colon, tag = located.partition(":")
    if not path or "\0" in path:
        raise ImageReferenceError(f"image reference {shown(text)}: no path", hint=SUPPORTED)
    if colon and (tag[:1] not in _WORD or not _TAG_LATER.issuperset(tag) or len(tag) > TAG_MAX):
        raise ImageReferenceError(
            f"image reference {shown(text)}: {shown(tag) or 'an empty string'} is not a tag",
            hint="a path that holds a colon cannot be written in a reference; use a symbolic link to it",
        )
    return Reference(transport, path, tag, digest)


def _single(transport: str, rest: str, text: str) -> Reference:
    """A file that is one image; appc writes an image's digest with a dash (types.md, "Image ID")."""
    located, at, pin = rest.rpartition("@")
    algorithm = _SINGLE[transport]
    if at and pin.startswith(f"{algorithm}-"):
        rest = f"{located}@{pin.replace('-', ':', 1)}"
    path, digest = _split_digest(rest, text)
    if digest and not digest.startswith(f"{algorithm}:"):
        raise ImageReferenceError(
            f"image reference {shown(text)}: {shown(digest)} is not a {algorithm} digest",
            hint=f"{transport}: names an image by {algorithm}",
        )
    if not path or "\0" in path:
        raise ImageReferenceError(f"image reference {shown(text)}: no path", hint=SUPPORTED)
    return Reference(transport, path, "", digest)


def _split_digest(rest: str, text: str) -> tuple[str, str]:
    located, at, digest = rest.rpartition("@")
    # An @ may be part of the path: what follows it is a digest when it has a colon and no slash.
    if not at or "/" in digest or ":" not in digest:
        return rest, ""
    if not is_digest(digest):
        raise ImageReferenceError(
            f"image reference {shown(text)}: {shown(digest)} is not a digest",
            hint="a digest is sha256: and 64 hexadecimal digits in lower case, or sha512: and 128",
        )
    return located, digest


def _hint_for(text: str) -> str:
    if text.startswith((".", "/", "~")):
        return f"write oci:{text} for an OCI layout directory, oci-archive:{text} for a tar file of one"
    command = copying(text) if text not in TRANSPORTS else ""
    return f"{SUPPORTED}; {command} makes one" if command else SUPPORTED


def _copying_from(text: str) -> str:
    """The command that makes a layout of an image with a transport that is not read here."""
    transport = text.partition(":")[0]
    if transport in _SKOPEO:
        return f"skopeo copy {shown(text)} oci:DIRECTORY:TAG"
    return (transport not in _OTHERS and copying(text)) or "skopeo copy SOURCE oci:DIRECTORY:TAG"


def copying(text: str) -> str:
    """The command that makes a layout of an image named as for podman (``debian:12``); empty for other text.

    A name without a registry is Docker Hub's there (containers-registries.conf(5)), and one without a tag
    is ``latest``.
    """
    name, colon, tag = text.partition(":")
    if name[:1] not in _NAME_FIRST or not _NAME.issuperset(name) or (colon and not tag):
        return ""
    if not _TAG_LATER.issuperset(tag) or "/" in tag or ":" in tag:
        return ""
    first, slash, _ = name.partition("/")
    if slash and "." not in first and not tag:
        return ""  # a path, more probably
    registry = "" if slash and "." in first else "docker.io/" if slash else "docker.io/library/"
    return f"skopeo copy docker://{registry}{text} oci:DIRECTORY:{tag or 'latest'}"
