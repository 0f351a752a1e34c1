# SPDX-License-Identifier: Apache-2.0
"""Names of tar entries: one canonical spelling, and what is refused outright."""

from __future__ import annotations

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.log import shown

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS_OWN = (b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh.plnk")
"""Book-keeping of aufs in layers of old Docker versions; means nothing."""


def normal_name(raw: bytes, limits: Limits) -> bytes:
    """The name relative to the image's root, without ``.`` or empty components; b"" is the root.

    Leading slashes mean the image's root.  Raises ImageInvalid for ``..``, NUL and the empty name,
    ImageLimitExceeded for what is too long or too deep.
    """
    parts = [part for part in raw.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise ImageInvalid(f"tar entry {shown(raw)}: name with a .. component")
    if not raw or b"\0" in raw:
        raise ImageInvalid(f"tar entry {shown(raw)}: name is empty or holds NUL")
    if len(raw) > limits.path_bytes:
        raise ImageLimitExceeded(
            f"tar entry {shown(raw)}: name of {len(raw)} bytes, limit path_bytes {limits.path_bytes}"
        )
    if len(parts) > limits.path_depth:
        raise ImageLimitExceeded(f"tar entry {shown(raw)}: limit path_depth {limits.path_depth}")
    if parts and len(max(parts, key=len)) > limits.name_bytes:
        raise ImageLimitExceeded(f"tar entry {shown(raw)}: limit name_bytes {limits.name_bytes}")
    return b"/".join(parts)


def whiteout_target(name: bytes, path: bytes) -> bytes | None:
    """What a last component means: None for no whiteout, b"" for opaque or nothing, else the name to remove.

    image-spec, layer.md, "Whiteouts".  OPAQUE itself is told apart by the caller.
    """
    if not name.startswith(WHITEOUT):
        return None
    if name == OPAQUE or name in _AUFS_OWN:
        return b""
    target = name[len(WHITEOUT) :]
    if target in (b"", b".", b".."):
        raise ImageInvalid(f"tar entry {shown(path)}: a whiteout of {shown(target) or 'nothing'}")
    return target


def in_aufs_directory(parent: bytes) -> bool:
    """Whether a parent path runs through aufs's book-keeping.  Raises ImageInvalid for other whiteouts."""
    for part in parent.split(b"/"):
        if part in _AUFS_OWN:
            return True
        if part.startswith(WHITEOUT):
            raise ImageInvalid(f"tar entry below {shown(parent)}: a whiteout is not a directory")
    return False
