# SPDX-License-Identifier: Apache-2.0
"""Image references as users write them: ``docker://NAME``, ``oci:DIR[:TAG][@DIGEST]``, ``aci:FILE[@DIGEST]``.

The form of those of layouts is that of containers-transports(5): the path ends at the first colon, so it
cannot hold one; the tag is what the layout's index calls ``org.opencontainers.image.ref.name``.  Files that
are one image have no tag.  What has no transport is a registry's, as Podman takes it.
"""

from __future__ import annotations

from hpcpod.errors import ImageReferenceError
from hpcpod.frozen import frozen
from hpcpod.images.dockername import parse_name
from hpcpod.log import shown

TRANSPORTS = ("docker", "oci", "oci-archive", "docker-archive", "aci", "sif", "sqsh", "erofs", "dir")
SUPPORTED = (
    "supported: docker://HOST/NAME[:TAG][@sha256:HEX], NAME[:TAG], oci:DIRECTORY[:TAG][@sha256:HEX], "
    "oci-archive:FILE[:TAG][@sha256:HEX], docker-archive:FILE[:NAME[:TAG]], aci:FILE[@sha512-HEX], "
    "sif:FILE, sqsh:FILE, erofs:FILE, dir:DIRECTORY"
)
TAG_MAX = 255

# Sets, not regular expressions: compiling those takes longer than all else that is done with a reference.
_HEX = frozenset("0123456789abcdef")
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_WORD = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_TAG_LATER = _WORD | frozenset("./:+-")
_TRANSPORT_LATER = _LOWER | frozenset("0123456789+.-")
_OTHERS = ("library", "shub", "oras", "file", "http", "https", "ostree", "tarball")
_SKOPEO = ("docker-daemon", "containers-storage")
_SINGLE = {"aci": "sha512", "sif": "sha256", "sqsh": "sha256", "erofs": "sha256", "dir": "sha256"}
"""Transports of files and directories that are one image, and what its digest is made by."""
_DIGEST_DIGITS = {"sha256": 64, "sha512": 128}


@frozen
class Reference:
    """A parsed reference.

    transport: one of TRANSPORTS.  path: as written; for ``docker`` the host and the repository.  tag: empty
    for none; for ``docker-archive`` a name with or without a tag, or ``@N``, the N-th image from 0.  digest:
    empty for none.  short: a ``docker`` name without a host; containers-registries.conf(5) says whose it is.
    """

    transport: str
    path: str
    tag: str = ""
    digest: str = ""
    short: bool = False

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        prefix = "" if self.short else "docker://" if self.transport == "docker" else f"{self.transport}:"
        return f"{prefix}{self.path}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Whether text is a digest of an algorithm that is trusted here, and nothing else.

    The whole string is matched, so that a digest can be used as a file name without further thought.
    """
    algorithm, _, digits = text.partition(":")
    return len(digits) == _DIGEST_DIGITS.get(algorithm) and _HEX.issuperset(digits)


def parse_reference(text: str) -> Reference:
    """Split a reference into its parts.  Raises ImageReferenceError."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in TRANSPORTS:
        return _bare(text)
    if transport == "docker":
        return _docker(text, rest)
    if transport in _SINGLE:
        return _single(transport, rest, text)
    located, digest = _split_digest(rest, text) if transport != "docker-archive" else (rest, "")
    path, colon, tag = located.partition(":")
    if not path or "\0" in path:
        raise ImageReferenceError(f"image reference {shown(text)}: no path", hint=SUPPORTED)
    if colon and not (_is_archive_name(tag) if transport == "docker-archive" else _is_tag(tag)):
        raise ImageReferenceError(
            f"image reference {shown(text)}: {shown(tag) or 'an empty string'} is not a tag",
            hint="a path that holds a colon cannot be written in a reference; use a symbolic link to it",
        )
    return Reference(transport, path, tag, digest)


def _is_tag(tag: str) -> bool:
    return tag[:1] in _WORD and _TAG_LATER.issuperset(tag) and len(tag) <= TAG_MAX


def _is_archive_name(tag: str) -> bool:
    """What ``docker-archive:`` takes behind the path: a name as ``docker save`` was given it, or ``@N``."""
    if tag[:1] == "@":
        return tag[1:].isascii() and tag[1:].isdigit() and len(tag) < 10
    return parse_name(tag, short=True) is not None and "@" not in tag


def _docker(text: str, rest: str) -> Reference:
    """``docker://NAME``."""
    if not rest.startswith("//"):
        hint = f"write docker://{shown(rest)}" if parse_name(rest, short=False) else SUPPORTED
        raise ImageReferenceError(f"image reference {shown(text)}: docker: without //", hint=hint)
    _refuse_credentials(text)
    name = parse_name(rest[2:], short=False)
    if name is None:
        raise ImageReferenceError(
            f"image reference {shown(text)}: not a name of a registry's image",
            hint="docker://HOST[:PORT]/NAME[:TAG][@sha256:HEX], all of NAME in lower case",
        )
    _check_digest(name.digest, text)
    return Reference("docker", f"{name.host}/{name.path}", name.tag, name.digest)


def _bare(text: str) -> Reference:
    """A name as Podman takes it: with a host, or short."""
    _refuse_credentials(text)
    name = None if text in TRANSPORTS else parse_name(text, short=True)
    transport = text.partition(":")[0]
    if name is None or transport in (*_SKOPEO, *_OTHERS):
        known = ":" in text and transport[:1] in _LOWER and _TRANSPORT_LATER.issuperset(transport)
        what = f"transport {shown(transport)} is not supported" if known else "no transport, and no name"
        raise ImageReferenceError(f"image reference {shown(text)}: {what}", hint=_hint_for(text))
    _check_digest(name.digest, text)
    if name.host:
        return Reference("docker", f"{name.host}/{name.path}", name.tag, name.digest)
    return Reference("docker", name.path, name.tag, name.digest, short=True)


def _refuse_credentials(text: str) -> None:
    """Raise ImageReferenceError, without repeating it, for what looks like a secret before a host."""
    before, at, rest = text.partition("@")
    start = before.rfind("/") + 1
    if at and "/" in rest and ":" in before[start:]:
        raise ImageReferenceError(
            f"image reference {shown(before[:start])}...@{shown(rest)}: credentials before the host",
            hint="credentials come from podman login or docker login, never from a reference",
        )


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
    _check_digest(digest, text)
    return located, digest


def _check_digest(digest: str, text: str) -> None:
    if digest and not is_digest(digest):
        raise ImageReferenceError(
            f"image reference {shown(text)}: {shown(digest)} is not a digest",
            hint="a digest is sha256: and 64 hexadecimal digits in lower case, or sha512: and 128",
        )


_ENDINGS = {
    ".sif": "sif",
    ".aci": "aci",
    ".sqsh": "sqsh",
    ".squashfs": "sqsh",
    ".erofs": "erofs",
    ".tar": "oci-archive",
}
"""What a file of this ending probably is."""


def _hint_for(text: str) -> str:
    if text.startswith((".", "/", "~")):
        kind = next((kind for ending, kind in _ENDINGS.items() if text.endswith(ending)), "")
        if kind:
            return f"write {kind}:{shown(text)}" + (" or docker-archive:…" if kind == "oci-archive" else "")
        return f"write oci:{shown(text)} for an OCI layout, dir:{shown(text)} for a directory tree"
    if text.partition(":")[0] in _SKOPEO:
        return f"{SUPPORTED}; skopeo copy {shown(text)} oci:DIRECTORY:TAG makes one"
    return SUPPORTED
