# SPDX-License-Identifier: Apache-2.0
"""From a reference to one manifest of a layout: tag, pinned digest, platform, nested indexes."""

from __future__ import annotations

from collections.abc import Iterable

from hpcpod.errors import (
    ImageDigestMismatch,
    ImageInvalid,
    ImageLimitExceeded,
    ImageNotFound,
    ImagePlatformMismatch,
)
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.layout import OpenLayout
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
from hpcpod.images.sources.platforms import fits
from hpcpod.images.sources.reference import Reference
from hpcpod.log import shown
from hpcpod.model import Platform

LISTED = 10
"""Tags or platforms that an error message names."""


@frozen
class Documents:
    """A manifest and its configuration, verified and parsed, and their bytes."""

    descriptor: Descriptor
    layers: tuple[Layer, ...]
    config: ConfigDocument
    manifest_bytes: bytes
    config_bytes: bytes


class _Walk:
    """Bounds and remembers what was read while going down nested indexes."""

    def __init__(self, layout: OpenLayout, limits: Limits) -> None:
        self.layout = layout
        self.limits = limits
        self._seen: set[str] = set()
        self._descriptors = 0

    def count(self, found: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
        self._descriptors += len(found)
        if self._descriptors > self.limits.descriptors:
            raise ImageLimitExceeded(f"{self.layout.name}: limit descriptors {self.limits.descriptors}")
        return found

    def nested(self, descriptor: Descriptor, depth: int) -> tuple[Descriptor, ...]:
        """Entries of a nested index; nothing for one that was read before."""
        if descriptor.digest in self._seen:
            return ()
        self._seen.add(descriptor.digest)
        if depth > self.limits.index_depth or len(self._seen) > self.limits.documents:
            raise ImageLimitExceeded(
                f"{self.layout.name}: indexes within indexes, limits index_depth {self.limits.index_depth} "
                f"and documents {self.limits.documents}"
            )
        what = f"{self.layout.name}: index {descriptor.digest}"
        check_json_size(descriptor, what, self.limits)
        raw = self.layout.read_blob(descriptor)
        return self.count(parse_index(raw, what, descriptor.media_type, self.limits))


def find_manifest(layout: OpenLayout, reference: Reference, platform: Platform, limits: Limits) -> Descriptor:
    """The descriptor of the manifest that a reference names.

    Reads index.json and, where there are some, nested indexes; not the manifest.  Raises ImageNotFound,
    ImageInvalid, ImageDigestMismatch, ImagePlatformMismatch.
    """
    layout.check_mark()
    walk = _Walk(layout, limits)
    top = walk.count(parse_index(layout.read_index(), f"{layout.name}: index.json", None, limits))
    candidates = _tagged(layout, top, reference.tag)
    if reference.digest:
        candidates = (_pinned(walk, candidates, reference),)
    elif len({candidate.digest for candidate in candidates}) > 1:
        candidates = _unambiguous(layout, candidates, platform)
    found = _first_fit(walk, candidates, platform, 1)
    if found is None:
        raise ImagePlatformMismatch(
            f"image {layout.name}: nothing for {platform}, only for {_listed(_offers(candidates, walk))}",
            hint="--platform OS/ARCH chooses another; it runs only where the machine or an emulator can",
        )
    return found


def _tagged(layout: OpenLayout, top: tuple[Descriptor, ...], tag: str) -> tuple[Descriptor, ...]:
    if not top:
        raise ImageNotFound(f"image {layout.name}: its index.json is empty")
    if not tag:
        return top
    found = tuple(descriptor for descriptor in top if descriptor.tag == tag)
    if not found:
        tags = sorted({descriptor.tag for descriptor in top if descriptor.tag})
        raise ImageNotFound(
            f"image {layout.name}: no tag {shown(tag)}, only {_listed(tags) or 'images without a tag'}"
        )
    return found


def _unambiguous(
    layout: OpenLayout, candidates: tuple[Descriptor, ...], platform: Platform
) -> tuple[Descriptor, ...]:
    """Several images: the platform may decide between equal names, not between different ones."""
    tags = sorted({candidate.tag for candidate in candidates if candidate.tag})
    fitting = tuple(c for c in candidates if c.platform is not None and fits(c.platform, platform))
    if len(tags) <= 1 and len({candidate.digest for candidate in fitting}) == 1:
        return fitting
    names = _listed(tags) if tags else _listed(candidate.digest for candidate in candidates)
    raise ImageNotFound(
        f"image {layout.name}: holds {len(candidates)} images, the reference must say which: {names}",
        hint=f"{layout.name}:TAG or {layout.name}@DIGEST",
    )


def _pinned(walk: _Walk, candidates: tuple[Descriptor, ...], reference: Reference) -> Descriptor:
    """The descriptor with the pinned digest, at any depth below the candidates."""
    level, depth = candidates, 1
    while level:
        for descriptor in level:
            if descriptor.digest == reference.digest:
                return descriptor
        level = tuple(
            child
            for descriptor in level
            if descriptor.media_type in INDEX_TYPES
            for child in walk.nested(descriptor, depth)
        )
        depth += 1
    found = _listed(sorted({descriptor.digest for descriptor in candidates}))
    raise ImageDigestMismatch(
        f"image {walk.layout.name}: pinned to {reference.digest}, but holds {found}",
        hint="the image was changed since its digest was noted, or the digest is of another image",
    )


def _first_fit(
    walk: _Walk, candidates: tuple[Descriptor, ...], platform: Platform, depth: int
) -> Descriptor | None:
    """image-spec: of several that match, the first."""
    for descriptor in candidates:
        if descriptor.platform is not None and not fits(descriptor.platform, platform):
            continue
        if descriptor.media_type in MANIFEST_TYPES:
            return descriptor
        if descriptor.media_type in INDEX_TYPES:
            found = _first_fit(walk, walk.nested(descriptor, depth), platform, depth + 1)
            if found is not None:
                return found
        elif len(candidates) == 1:
            raise ImageInvalid(
                f"image {walk.layout.name}: {shown(descriptor.media_type)} is neither a manifest nor an index"
            )
    return None


def _offers(candidates: tuple[Descriptor, ...], walk: _Walk) -> list[str]:
    fresh = _Walk(walk.layout, walk.limits)
    offers = []
    for descriptor in candidates:
        inner = fresh.nested(descriptor, 1) if descriptor.media_type in INDEX_TYPES else (descriptor,)
        offers += [str(entry.platform) if entry.platform else "unnamed platform" for entry in inner]
    return sorted(set(offers))


def _listed(names: Iterable[str]) -> str:
    every = [shown(name) for name in names]
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more


def read_documents(
    layout: OpenLayout, descriptor: Descriptor, platform: Platform, limits: Limits
) -> Documents:
    """Read, verify and parse manifest and configuration.

    Raises ImageInvalid, ImageDigestMismatch, ImagePlatformMismatch.
    """
    what = f"{layout.name}: manifest {descriptor.digest}"
    check_json_size(descriptor, what, limits)
    manifest_bytes = layout.read_blob(descriptor)
    manifest = parse_manifest(manifest_bytes, what, descriptor.media_type, limits)
    config_what = f"{layout.name}: config {manifest.config.digest}"
    check_json_size(manifest.config, config_what, limits)
    config_bytes = layout.read_blob(manifest.config)
    config = parse_config(config_bytes, config_what, limits)
    check_platform(layout, config.platform, platform)
    return Documents(descriptor, layers_of(manifest, config, what), config, manifest_bytes, config_bytes)


def check_platform(layout: OpenLayout, built_for: Platform, wanted: Platform) -> None:
    """Raise ImagePlatformMismatch unless an image for `built_for` is what was asked for."""
    if not fits(built_for, wanted):
        raise ImagePlatformMismatch(
            f"image {layout.name}: built for {shown(str(built_for))}, wanted {wanted}",
            hint="--platform OS/ARCH chooses another; it runs only where the machine or an emulator can",
        )
