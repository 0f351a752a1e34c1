# SPDX-License-Identifier: Apache-2.0
"""Where an image comes from: what all transports have in common, and the one for OCI layouts.

A source names the image by a digest (cheaply: a start with the image in the store asks only that), reads
and verifies its documents, and unpacks its layers, verified, into a directory.
"""

from __future__ import annotations

import os

from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.access import NO_ACCESS, Access
from hpcpod.images.sources.layout import open_layout
from hpcpod.images.sources.manifest import ConfigDocument
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.resolve import find_manifest
from hpcpod.images.sources.walk import Documents, read_documents
from hpcpod.images.trust.facts import Signature, Subject, path_scopes
from hpcpod.log import Progress
from hpcpod.model import FileStamp, Platform

__all__ = ["Access", "Described", "OciSource", "Part", "Source", "described", "open_source"]

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol, Self

    from hpcpod.images.unpacking.layers import Unpacked
else:
    Protocol = object


@frozen
class Part:
    """A layer as it is stored.  size: bytes.  compression: a word."""

    digest: str
    compression: str
    size: int


@frozen
class Described:
    """The documents of an image, verified.

    digest: names the image.  parts: its layers, lowest first.  config_bytes: an image-spec configuration;
    manifest_bytes: in the format of the source.  Both are kept in the store.  details: what else there is to
    show of an image of this format, as names and lines.
    """

    digest: str
    parts: tuple[Part, ...]
    config: ConfigDocument
    manifest_bytes: bytes
    config_bytes: bytes
    details: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all layers as they are stored, compressed."""
        return sum(part.size for part in self.parts)


def described(documents: Documents) -> Described:
    """The documents of an image of the image-spec, or of Docker."""
    return Described(
        digest=documents.descriptor.digest,
        parts=tuple(
            Part(layer.blob.digest, layer.compression.value, layer.blob.size) for layer in documents.layers
        ),
        config=documents.config,
        manifest_bytes=documents.manifest_bytes,
        config_bytes=documents.config_bytes,
    )


class Source(Protocol):
    """An image at its origin, opened.  A context manager."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release descriptors."""

    @property
    def name(self) -> str:
        """For messages, printable."""

    @property
    def stamp(self) -> FileStamp | None:
        """Identity of the file that the meaning of the reference depends on; None where there is none."""

    def find(self, platform: Platform) -> str:
        """The digest that names the image for this platform.  Raises ImageNotFound and its like."""

    def describe(self, platform: Platform) -> Described:
        """Its documents, verified.  Raises ImageInvalid, ImageDigestMismatch, ImagePlatformMismatch."""

    def identity(self) -> str:
        """What tells the content from any other, where that is cheaper than find(); empty for nothing."""

    def assume(self, digest: str) -> None:
        """Let find() answer what it answered for the same identity before."""

    def subject(self, platform: Platform) -> Subject:
        """What policies and signatures are about.  Raises as find() does."""

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """All signatures that lie beside the image, or in it.  Raises HpcpodError of many kinds."""

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Fill the empty directory with the tree of what describe() described, verified to the last byte.

        readable: bits 0o444 that every file gets (and its execution bits accordingly).  Raises ImageInvalid
        and its kinds, StoreFull, StoreUnusable.
        """

    def close(self) -> None:
        """Release descriptors."""


class OciSource:
    """An image of an OCI layout.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        self._layout = open_layout(reference, limits)
        self._reference = reference
        self._limits = limits
        self._documents: Documents | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the layout."""
        self.close()

    @property
    def name(self) -> str:
        """For messages, printable."""
        return self._layout.name

    @property
    def stamp(self) -> FileStamp:
        """Identity of index.json, or of the archive."""
        return self._layout.stamp

    def find(self, platform: Platform) -> str:
        """The digest of the manifest that the reference means."""
        return find_manifest(self._layout, self._reference, platform, self._limits).digest

    def describe(self, platform: Platform) -> Described:
        """Manifest and configuration, verified."""
        descriptor = find_manifest(self._layout, self._reference, platform, self._limits)
        documents = read_documents(self._layout, descriptor, platform, self._limits)
        self._documents = documents
        return described(documents)

    def identity(self) -> str:
        """None: the digest stands in the index."""
        return ""

    def assume(self, digest: str) -> None:
        """Nothing to do: find() reads the index."""

    def subject(self, platform: Platform) -> Subject:
        """Scopes: the directory or archive with its tag, without, and the directories above it."""
        path = os.path.realpath(self._reference.path)
        tagged = (f"{path}:{self._reference.tag}",) if self._reference.tag else ()
        return Subject(
            transport=self._reference.transport,
            scopes=(*tagged, *path_scopes(path)),
            identity="",
            digest=self.find(platform),
        )

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """None: layouts have no place for them that tools agree on."""
        return ()

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Unpack the layers."""
        from hpcpod.images.unpacking.layers import unpack_layers

        assert self._documents is not None, "describe() comes first"
        return unpack_layers(self._layout, self._documents, directory, self._limits, progress, readable)

    def close(self) -> None:
        """Close the layout."""
        self._layout.close()


def open_source(reference: Reference, limits: Limits, access: Access | None = None) -> Source:
    """Open what a reference names.  Raises ImageNotFound, ImageInvalid, ImageUnsupported."""
    if reference.transport in ("oci", "oci-archive"):
        return OciSource(reference, limits)
    if reference.transport == "docker-archive":
        from hpcpod.images.sources.docker_archive import DockerArchiveSource

        return DockerArchiveSource(reference, limits)
    if reference.transport == "dir":
        from hpcpod.images.sources.dir_source import DirSource

        return DirSource(reference, limits)
    if reference.transport == "docker":
        from hpcpod.images.sources.registry.source import RegistrySource

        return RegistrySource(reference, limits, access or NO_ACCESS)
    return _open_file(reference, limits)


def _open_file(reference: Reference, limits: Limits) -> Source:
    """Open a file that is one image."""
    if reference.transport == "aci":
        from hpcpod.images.sources.aci_source import AciSource

        return AciSource(reference, limits)
    if reference.transport == "sif":
        from hpcpod.images.sources.sif_source import SifSource

        return SifSource(reference, limits)
    if reference.transport == "sqsh":
        from hpcpod.images.sources.sqsh_source import SqshSource

        return SqshSource(reference, limits)
    from hpcpod.images.sources.erofs_source import ErofsSource

    return ErofsSource(reference, limits)
