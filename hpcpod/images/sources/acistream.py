# SPDX-License-Identifier: Apache-2.0
"""The entries of an App Container Image's tar (appc spec 0.8, aci.md, "Image Archives").

Only ``manifest`` and ``rootfs/`` may be at the top.  The manifest may come before or after the tree; actool
writes it last.  So an image is read twice: AciScan finds the manifest, the image ID and what the tree takes;
AciTree gives the tree's entries to whoever unpacks them.  Nothing but the manifest is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.names import WHITEOUT, normal_name
from hpcpod.images.unpacking.tarstream import ByteStream, Entry, Kind, TarReader
from hpcpod.log import shown

MANIFEST = b"manifest"
ROOTFS = b"rootfs"


class _AciReader(TarReader):
    """A tar reader that knows what may be at the top of an image."""

    def _entries(self) -> Iterator[tuple[bytes, bytes, Entry]]:
        """(first component, the rest, entry); the first is empty for the archive's own top."""
        for entry in super().__iter__():
            name = normal_name(entry.name, self._limits)
            top, _, rest = name.partition(b"/")
            if not top and entry.kind is not Kind.DIRECTORY:
                raise ImageInvalid(f"aci: {shown(entry.name)} is a {entry.kind.value}, expected a directory")
            if top not in (b"", MANIFEST, ROOTFS) or (top == MANIFEST and rest):
                raise ImageInvalid(
                    f"aci: {shown(entry.name)} lies outside rootfs/",
                    hint="an ACI holds the file manifest and the directory rootfs, nothing else",
                )
            if top == ROOTFS and not rest and entry.kind is not Kind.DIRECTORY:
                raise ImageInvalid(f"aci: rootfs is a {entry.kind.value}, expected a directory")
            if top == MANIFEST and entry.kind is not Kind.FILE:
                raise ImageInvalid(f"aci: manifest is a {entry.kind.value}, expected a file")
            yield top, rest, entry


class AciScan(_AciReader):
    """The first reading.  manifest: its bytes, None when there was none; data: bytes of the tree's files."""

    def __init__(self, stream: ByteStream, limits: Limits) -> None:
        super().__init__(stream, limits)
        self.manifest: bytes | None = None
        self.data = 0

    def read(self) -> bytes:
        """Read to the end; the manifest.  Raises ImageInvalid, ImageLimitExceeded."""
        rootfs = False
        for count, (top, _, entry) in enumerate(self._entries()):
            if count >= self._limits.entries:
                raise ImageLimitExceeded(f"aci: more entries than limit entries {self._limits.entries}")
            rootfs = rootfs or top == ROOTFS
            if top == MANIFEST:
                self._take(entry)
            else:
                self.data += entry.size
        if self.manifest is None:
            raise ImageInvalid("aci: no manifest in it")
        if not rootfs:
            raise ImageInvalid("aci: no rootfs in it")
        return self.manifest

    def _take(self, entry: Entry) -> None:
        if self.manifest is not None:
            raise ImageInvalid("aci: two manifests")
        if entry.size > self._limits.json_bytes:
            raise ImageLimitExceeded(
                f"aci: manifest of {entry.size} bytes, limit json_bytes {self._limits.json_bytes}"
            )
        count, self._data = self._data, 0
        self.manifest = self._stream.take(count)
        if len(self.manifest) != count:
            raise ImageInvalid("tar: ends in the middle of a file's data")


class AciTree(_AciReader):
    """The second reading: the tree's entries, relative to its root, as the entries of a lowest layer."""

    def __init__(self, stream: ByteStream, limits: Limits, whitelist: frozenset[bytes] | None) -> None:
        super().__init__(stream, limits)
        self._whitelist = whitelist
        self._above = _parents(whitelist or frozenset())

    def __iter__(self) -> Iterator[Entry]:
        """Entries whose names and hard links begin below rootfs."""
        for top, rest, entry in self._entries():
            if top != ROOTFS:
                continue
            if b"/" + WHITEOUT in b"/" + rest:
                raise ImageInvalid(f"aci: {shown(entry.name)} is named as layers name whiteouts")
            if not self._wanted(rest, entry.kind):
                continue
            link = self._target(entry) if entry.kind is Kind.HARDLINK else entry.link
            yield entry._replace(name=rest or b".", link=link)

    def _wanted(self, name: bytes, kind: Kind) -> bool:
        if self._whitelist is None or not name or name in self._whitelist:
            return True
        return kind is Kind.DIRECTORY and name in self._above

    def _target(self, entry: Entry) -> bytes:
        """Hard links name their target as the archive does."""
        top, _, rest = normal_name(entry.link, self._limits).partition(b"/")
        if top != ROOTFS or not rest:
            raise ImageInvalid(
                f"aci: {shown(entry.name)}: hard link to {shown(entry.link)}, which is not below rootfs/"
            )
        if not self._wanted(rest, Kind.HARDLINK):
            raise ImageInvalid(
                f"aci: {shown(entry.name)}: hard link to {shown(entry.link)}, which pathWhitelist leaves out"
            )
        return rest


def _parents(names: frozenset[bytes]) -> frozenset[bytes]:
    """All directories above these names."""
    found: set[bytes] = set()
    for name in names:
        head = name.rpartition(b"/")[0]
        while head and head not in found:
            found.add(head)
            head = head.rpartition(b"/")[0]
    return frozenset(found)
