# SPDX-License-Identifier: Apache-2.0
"""From a reference to one manifest of a layout: tag, pinned digest, platform, nested indexes."""

from __future__ import annotations

from hpcpod.errors import ImageDigestMismatch, ImageNotFound
from hpcpod.images.limits import Limits
from hpcpod.images.sources.layout import OpenLayout
from hpcpod.images.sources.manifest import INDEX_TYPES, Descriptor, parse_index
from hpcpod.images.sources.platforms import fits
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.walk import Walk, choose, listed
from hpcpod.log import shown
from hpcpod.model import Platform


def find_manifest(layout: OpenLayout, reference: Reference, platform: Platform, limits: Limits) -> Descriptor:
    """The descriptor of the manifest that a reference names.

    Reads index.json and, where there are some, nested indexes; not the manifest.  Raises ImageNotFound,
    ImageInvalid, ImageDigestMismatch, ImagePlatformMismatch.
    """
    layout.check_mark()
    walk = Walk(layout, limits)
    top = walk.count(parse_index(layout.read_index(), f"{layout.name}: index.json", None, limits))
    candidates = _tagged(layout, top, reference.tag)
    if reference.digest:
        candidates = (_pinned(walk, candidates, reference),)
    elif len({candidate.digest for candidate in candidates}) > 1:
        candidates = _unambiguous(layout, candidates, platform)
    return choose(walk, candidates, platform).descriptor


def _tagged(layout: OpenLayout, top: tuple[Descriptor, ...], tag: str) -> tuple[Descriptor, ...]:
    if not top:
        raise ImageNotFound(f"image {layout.name}: its index.json is empty")
    if not tag:
        return top
    found = tuple(descriptor for descriptor in top if descriptor.tag == tag)
    if not found:
        tags = sorted({descriptor.tag for descriptor in top if descriptor.tag})
        raise ImageNotFound(
            f"image {layout.name}: no tag {shown(tag)}, only {listed(tags) or 'images without a tag'}"
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
    names = listed(tags) if tags else listed(candidate.digest for candidate in candidates)
    raise ImageNotFound(
        f"image {layout.name}: holds {len(candidates)} images, the reference must say which: {names}",
        hint=f"{layout.name}:TAG or {layout.name}@DIGEST",
    )


def _pinned(walk: Walk, candidates: tuple[Descriptor, ...], reference: Reference) -> Descriptor:
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
    found = listed(sorted({descriptor.digest for descriptor in candidates}))
    raise ImageDigestMismatch(
        f"image {walk.origin.name}: pinned to {reference.digest}, but holds {found}",
        hint="the image was changed since its digest was noted, or the digest is of another image",
    )
