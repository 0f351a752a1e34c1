# SPDX-License-Identifier: Apache-2.0
"""Manifests of what is attached to an image, signatures above all, and lists of them.  Pure.

image-spec 1.1, manifest.md ("artifactType"); distribution-spec 1.1, "Listing Referrers".
"""

from __future__ import annotations

from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown

BUNDLE = "application/vnd.dev.sigstore.bundle"
"""Beginning of the type of a sigstore bundle, whose version follows."""
_EMPTY = "application/vnd.oci.empty.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
LAYERS = 64


@frozen
class Attachment:
    """A descriptor.  kind: its artifactType, empty for none.  signature: of cosign's annotation, or empty."""

    media_type: str
    digest: str
    size: int
    kind: str = ""
    signature: str = ""

    @property
    def is_bundle(self) -> bool:
        """Whether it is a sigstore bundle."""
        return self.media_type.startswith(BUNDLE)

    @property
    def may_hold_bundle(self) -> bool:
        """Whether a manifest in a list may hold one: cosign 3 calls itself empty where it keeps the list."""
        return self.kind in ("", _EMPTY) or self.kind.startswith(BUNDLE)


@frozen
class Attached:
    """The manifest of an attachment.  kind: its artifactType, empty for none."""

    kind: str
    layers: tuple[Attachment, ...]


def parse_attachments(raw: bytes, what: str, limits: Limits) -> Attached:
    """A manifest of attachments.  Raises ImageInvalid."""
    fields = Fields(parse_object(raw, what, limits), what)
    if fields.number("schemaVersion") != 2:
        fields.fail("schemaVersion", "2")
    layers = fields.children("layers", "layers", LAYERS)
    return Attached(fields.text("artifactType", ""), tuple(map(_attachment, layers)))


def parse_referrers(raw: bytes, what: str, limits: Limits) -> tuple[Attachment, ...]:
    """A list of referrers.  Raises ImageInvalid."""
    fields = Fields(parse_object(raw, what, limits), what)
    return tuple(map(_attachment, fields.children("manifests", "descriptors", limits.descriptors)))


def _attachment(fields: Fields) -> Attachment:
    digest = fields.text("digest")
    if not is_digest(digest):
        fields.fail("digest", f"sha256 or sha512 in hexadecimal, got {shown(digest)}")
    return Attachment(
        fields.text("mediaType"),
        digest,
        fields.number("size"),
        fields.text("artifactType", ""),
        dict(fields.mapping("annotations")).get(SIGNATURE, ""),
    )
