# SPDX-License-Identifier: Apache-2.0
"""``sif:FILE``: a Singularity image as a source of the store (source.py says what that is).

A SIF file has no digest of its own: the sha256 of the whole file names the image.  To unpack, the file is
copied to a private one and hashed on the way, and read from there: what is unpacked is what was hashed, even
if somebody writes to the file meanwhile.
"""

from __future__ import annotations

import json
import os

from hpcpod.errors import ImageDigestMismatch, ImageInvalid, ImageUnsupported
from hpcpod.images.limits import Limits
from hpcpod.images.sources import sif
from hpcpod.images.sources.filesource import FileSource, OwnBlob
from hpcpod.images.sources.manifest import parse_config
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.sif import Sif, SifObject, parse_sif
from hpcpod.images.sources.source import Described, Part
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.images.trust.facts import Subject
from hpcpod.log import Progress
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable

    from hpcpod.images.unpacking.layers import Unpacked

_CHUNK = 1 << 20
_METADATA = "inspect-metadata.json"
"""The object in which Apptainer keeps what `apptainer inspect` shows."""


class SifSource(FileSource):
    """An image in a SIF file.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        super().__init__(reference, limits)
        self._hash = ""
        self._found: tuple[Sif, dict[str, str]] | None = None

    def find(self, platform: Platform) -> str:
        """The digest of the file: the pinned one, which unpack() checks, else that of its content."""
        return self._pin or self._digest()

    def describe(self, platform: Platform) -> Described:
        """What header and descriptors say, as a configuration of the image-spec."""
        digest = self._digest()
        try:
            image, labels = self._parsed(self._fd)
        except (ImageInvalid, OSError) as error:
            raise self._named(error) from None
        root = self._root(image)
        self._found = image, labels
        built_for = Platform("linux", image.architecture) if image.architecture else platform
        self.check_platform(built_for, platform)
        raw = _config(built_for, labels)
        return Described(
            digest=digest,
            parts=(Part(digest, root.partition.file_system if root.partition else "", self._size),),
            config=parse_config(raw, f"{self.name}: configuration", self._limits),
            manifest_bytes=json.dumps(_document(image), indent=1).encode() + b"\n",
            config_bytes=raw,
            details=_details(image),
        )

    def subject(self, platform: Platform) -> Subject:
        """The file."""
        return self._subject(self.find(platform))

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Unpack the primary partition, a squashfs, which this program reads itself."""
        from hpcpod.images.sources.squashfs import Squashfs
        from hpcpod.images.sources.squashtree import SquashTree
        from hpcpod.images.unpacking.filling import filling
        from hpcpod.images.unpacking.layers import Unpacked
        from hpcpod.images.unpacking.pipeline import Budget

        assert self._found is not None, "describe() comes first"
        budget, root = Budget(self._limits), self._root(self._found[0])
        with filling(directory, (2 * self._size, 0), self._limits, progress, readable) as applier:
            copy = _private_file(directory)
            try:
                applier.hold(self._size)
                self._copy(copy)
                read = _reader(copy, root.offset)
                image = Squashfs(read, root.size, self._limits)
                applier.layer(SquashTree(image, self._limits, budget.spend, progress.advance), lowest=True)
            except ImageInvalid as error:
                raise self._named(error) from None
            finally:
                os.close(copy)
            applier.hold(-self._size)
        return Unpacked(budget.used, applier.entries, applier.skipped, applier.disk)

    def _parsed(self, fd: int) -> tuple[Sif, dict[str, str]]:
        """Header and descriptors, and the image's labels, of this file or of its copy."""
        image = parse_sif(_reader(fd), self._size, self._limits)
        return image, self._labels(fd, image)

    def _digest(self) -> str:
        """That of the file's content, which is read once.  Raises ImageDigestMismatch, ImageInvalid."""
        if not self._hash:
            import hashlib

            digest = hashlib.sha256()
            try:
                with OwnBlob(self._fd, self._size, self._stamp.path) as blob:
                    for chunk in blob.chunks(_CHUNK):
                        digest.update(chunk)
                self._hash = self._check_pin(f"sha256:{digest.hexdigest()}")
            except (ImageInvalid, OSError) as error:
                raise self._named(error) from None
        return self._hash

    def _root(self, image: Sif) -> SifObject:
        """The primary partition.  Raises ImageInvalid, ImageUnsupported."""
        root = image.primary
        if root is None and any(found.kind == sif.KINDS[sif.OCI_INDEX] for found in image.objects):
            raise ImageUnsupported(f"image {self.name}: holds an OCI image, which is not read")
        if root is None or root.partition is None:
            raise ImageInvalid(
                f"image {self.name}: no primary partition in it", hint="it holds no root file system to run"
            )
        if root.partition.file_system != sif.FILE_SYSTEMS[sif.SQUASHFS]:
            raise ImageUnsupported(
                f"image {self.name}: its root file system is {root.partition.file_system}, which is not read",
                hint="squashfs is; apptainer build makes it of any other image",
            )
        return root

    def _labels(self, fd: int, image: Sif) -> dict[str, str]:
        """Those of the labels object, else those in Apptainer's metadata."""
        for found in image.objects:
            if found.kind == sif.KINDS[sif.LABELS]:
                return dict(Fields({"labels": self._json(fd, found)}, "labels").mapping("labels"))
        for found in image.objects:
            if found.kind == sif.KINDS[sif.GENERIC_JSON] and found.name == _METADATA:
                fields = Fields(self._json(fd, found), _METADATA)
                for key in ("data", "attributes"):
                    if not fields.has(key):
                        return {}
                    fields = fields.child(key)
                return dict(fields.mapping("labels"))
        return {}

    def _json(self, fd: int, found: SifObject) -> dict[str, object]:
        raw = os.pread(fd, min(found.size, self._limits.json_bytes + 1), found.offset)
        return parse_object(raw, f"object {found.number}", self._limits)

    def _copy(self, fd: int) -> None:
        """Copy the file to this one, and check that it is what was described.  Raises ImageDigestMismatch."""
        import hashlib

        digest = hashlib.sha256()
        with OwnBlob(self._fd, self._size, self._stamp.path) as blob:
            for chunk in blob.chunks(_CHUNK):
                digest.update(chunk)
                _write_all(fd, chunk)
        if f"sha256:{digest.hexdigest()}" != self._digest() or self._parsed(fd) != self._found:
            raise ImageDigestMismatch("changed while it was read")


def _reader(fd: int, start: int = 0) -> Callable[[int, int], bytes]:
    """What gives bytes of a file by offset, counted from start."""
    return lambda at, count: os.pread(fd, count, start + at)


def _private_file(directory: str) -> int:
    """A file without a name on the file system of directory."""
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # NFS has none
        path = f"{directory}/.hpcpod-copy"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        return fd


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _config(platform: Platform, labels: dict[str, str]) -> bytes:
    document = {
        "os": platform.os,
        "architecture": platform.architecture,
        "variant": platform.variant,
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _document(image: Sif) -> dict[str, object]:
    """The header and descriptors as a document for the store."""
    objects = []
    for found in image.objects:
        fields = {key: value for key, value in vars(found).items() if key != "partition"}
        objects.append({**fields, **(vars(found.partition) if found.partition else {})})
    return {**{key: value for key, value in vars(image).items() if key != "objects"}, "objects": objects}


def _details(image: Sif) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What `image inspect` shows beside what all images have."""
    objects = []
    for found in image.objects:
        words = [f"{found.number}", found.kind, f"{found.size} B"]
        if found.partition is not None:
            words += [found.partition.file_system, found.partition.use]
            words += [found.partition.architecture or "any architecture"]
        if found.link:
            words.append(f"of {'group' if found.of_group else 'object'} {found.link}")
        objects.append(" ".join([*words, *([found.name] if found.name else [])]))
    return ("launch", (image.launch.strip(),)), ("identity", (image.identity,)), ("objects", tuple(objects))
