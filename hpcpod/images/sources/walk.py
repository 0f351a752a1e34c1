# SPDX-License-Identifier: Apache-2.0
"""From an index to the manifest for a platform, and from there to an image's documents, wherever they lie.

Layouts and registries go the same way: what differs is who gives the bytes, a :class:`Library`.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpcpod.errors import ImageInvalid, ImageLimitExceeded, ImagePlatformMismatch
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    ConfigDocument,
    Descriptor,
    Layer,
    check_json_size,
    layers_of,
    parse_config,
    parse_index,
    parse_manifest,
)
from hpcpod.images.sources.platforms import check_fits, fits
from hpcpod.log import shown
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol
else:
    Protocol = object

LISTED = 10
"""Tags or platforms that an error message names."""


class Content(Protocol):
    """The bytes of one blob.  size: how many are promised."""

    size: int

    def chunks(self, longest: int) -> Iterator[bytes]:
        """The content in pieces of at most so many bytes.  Raises ImageDigestMismatch when it is shorter."""

    def interrupt(self) -> None:
        """Make chunks() end soon, whatever it waits for; called from another thread."""

    def close(self) -> None:
        """Release it."""


class Library(Protocol):
    """Where documents of an image come from."""

    @property
    def name(self) -> str:
        """For messages, printable."""

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A document, whole and verified.  Raises ImageDigestMismatch, and what reading raises."""


class Origin(Library, Protocol):
    """Where documents and layers of an image come from."""

    def open_blob(self, descriptor: Descriptor) -> Content:
        """A layer's blob; its size is checked, its digest not yet.  Raises ImageDigestMismatch."""


@frozen
class Documents:
    """A manifest and its configuration, verified and parsed, and their bytes."""

    descriptor: Descriptor
    layers: tuple[Layer, ...]
    config: ConfigDocument
    manifest_bytes: bytes
    config_bytes: bytes


@frozen
class Found:
    """A manifest, and the digests of the indexes that led to it, outermost first."""

    descriptor: Descriptor
    within: tuple[str, ...] = ()


class Walk:
    """Bounds and remembers what was read while going down nested indexes."""

    def __init__(self, origin: Library, limits: Limits) -> None:
        self.origin = origin
        self.limits = limits
        self._seen: set[str] = set()
        self._descriptors = 0

    def count(self, found: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
        """Hand descriptors on, counted.  Raises ImageLimitExceeded."""
        self._descriptors += len(found)
        if self._descriptors > self.limits.descriptors:
            raise ImageLimitExceeded(f"{self.origin.name}: limit descriptors {self.limits.descriptors}")
        return found

    def nested(self, descriptor: Descriptor, depth: int) -> tuple[Descriptor, ...]:
        """Entries of a nested index; nothing for one that was read before."""
        if descriptor.digest in self._seen:
            return ()
        self._seen.add(descriptor.digest)
        if depth > self.limits.index_depth or len(self._seen) > self.limits.documents:
            raise ImageLimitExceeded(
                f"{self.origin.name}: indexes within indexes, limits index_depth {self.limits.index_depth} "
                f"and documents {self.limits.documents}"
            )
        what = f"{self.origin.name}: index {descriptor.digest}"
        check_json_size(descriptor, what, self.limits)
        raw = self.origin.read_blob(descriptor)
        return self.count(parse_index(raw, what, descriptor.media_type, self.limits))


def choose(walk: Walk, candidates: tuple[Descriptor, ...], platform: Platform) -> Found:
    """The manifest for a platform among candidates and in indexes below them.

    Raises ImagePlatformMismatch, ImageInvalid, ImageLimitExceeded, and what reading raises.
    """
    found = _first_fit(walk, candidates, platform, ())
    if found is None:
        raise ImagePlatformMismatch(
            f"image {walk.origin.name}: nothing for {platform}, only for {listed(_offers(candidates, walk))}",
            hint="--platform OS/ARCH chooses another; it runs only where the machine or an emulator can",
        )
    return found


def _first_fit(
    walk: Walk, candidates: tuple[Descriptor, ...], platform: Platform, within: tuple[str, ...]
) -> Found | None:
    """image-spec: of several that match, the first."""
    for descriptor in candidates:
        if descriptor.platform is not None and not fits(descriptor.platform, platform):
            continue
        if descriptor.media_type in MANIFEST_TYPES:
            return Found(descriptor, within)
        if descriptor.media_type in INDEX_TYPES:
            children = walk.nested(descriptor, len(within) + 1)
            found = _first_fit(walk, children, platform, (*within, descriptor.digest))
            if found is not None:
                return found
        elif len(candidates) == 1:
            raise ImageInvalid(
                f"image {walk.origin.name}: {shown(descriptor.media_type)} is neither a manifest nor an index"
            )
    return None


def _offers(candidates: tuple[Descriptor, ...], walk: Walk) -> list[str]:
    fresh = Walk(walk.origin, walk.limits)
    offers = []
    for descriptor in candidates:
        inner = fresh.nested(descriptor, 1) if descriptor.media_type in INDEX_TYPES else (descriptor,)
        offers += [str(entry.platform) if entry.platform else "unnamed platform" for entry in inner]
    return sorted(set(offers))


def listed(names: Iterable[str]) -> str:
    """Names for a message, the first LISTED of them."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more


def read_documents(origin: Library, descriptor: Descriptor, platform: Platform, limits: Limits) -> Documents:
    """Read, verify and parse manifest and configuration.

    Raises ImageInvalid, ImageDigestMismatch, ImagePlatformMismatch.
    """
    what = f"{origin.name}: manifest {descriptor.digest}"
    check_json_size(descriptor, what, limits)
    manifest_bytes = origin.read_blob(descriptor)
    manifest = parse_manifest(manifest_bytes, what, descriptor.media_type, limits)
    config_what = f"{origin.name}: config {manifest.config.digest}"
    check_json_size(manifest.config, config_what, limits)
    config_bytes = origin.read_blob(manifest.config)
    config = parse_config(config_bytes, config_what, limits)
    check_fits(config.platform, platform, origin.name)
    return Documents(descriptor, layers_of(manifest, config, what), config, manifest_bytes, config_bytes)
