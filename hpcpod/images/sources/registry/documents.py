# SPDX-License-Identifier: Apache-2.0
"""Documents of a registry (distribution-spec 1.1): manifests, indexes, referrers, small blobs; verified."""

from __future__ import annotations

import hashlib

from hpcpod.errors import (
    HpcpodError,
    ImageDigestMismatch,
    ImageInvalid,
    ImageLimitExceeded,
    ImageUnsupported,
)
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.sources.registry.client import Client
from hpcpod.images.sources.registry.places import Places
from hpcpod.images.sources.registry.trouble import Trouble, final
from hpcpod.images.sources.registry.web import read_body
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

ACCEPT = ", ".join(sorted(MANIFEST_TYPES | INDEX_TYPES))
SCHEMA_1 = frozenset(
    f"application/vnd.docker.distribution.manifest.v1+{ending}" for ending in ("json", "prettyjws")
)
_UNTYPED = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
"""What servers say that do not know; the document's own word counts then."""


@frozen
class Document:
    """A manifest or an index, as it came, its digest checked.  media_type: empty where nobody said it."""

    raw: bytes
    digest: str
    media_type: str


class RegistryDocuments:
    """Documents of one image from its places: an Origin (walk.py) without layers."""

    def __init__(self, name: str, places: Places, limits: Limits) -> None:
        self.name = name
        self.places = places
        self._limits = limits
        self._known: dict[str, bytes] = {}

    def top(self, digest: str) -> Document:
        """The manifest or index with a digest, or, for an empty one, that the tag means now.

        A tag that is not written is ``latest``.  Raises HpcpodError of many kinds.
        """
        found, client = self.places.ask(
            f"image {self.name}",
            lambda client: self._typed(
                manifest(client, digest or client.place.tag or "latest", ACCEPT, self._limits.json_bytes)
            ),
        )
        self.places.prefer(client)
        self._known[found.digest] = found.raw
        return found

    def _typed(self, document: Document) -> Document:
        """With the type that it says itself where the server did not.  Raises Trouble."""
        if document.media_type not in _UNTYPED:
            return document
        try:
            fields = Fields(parse_object(document.raw, "its manifest", self._limits), "its manifest")
            said = fields.text("mediaType", "")
        except ImageInvalid as error:
            raise final(error.message, type(error), error.hint) from None
        if fields.has("fsLayers"):
            raise _schema_1()
        guess = "index.v1+json" if fields.has("manifests") else "manifest.v1+json"
        return Document(document.raw, document.digest, said or f"application/vnd.oci.image.{guess}")

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A document by its descriptor, whole and verified.  Raises HpcpodError of many kinds."""
        known = self._known.get(descriptor.digest)
        if known is None:
            found, client = self.places.ask(
                f"image {self.name}: {descriptor.digest}", lambda client: self._read(client, descriptor)
            )
            self.places.prefer(client)
            self._known[descriptor.digest] = known = found
        if len(known) != descriptor.size:
            raise ImageDigestMismatch(
                f"{self.name}: {descriptor.digest} has {len(known)} bytes, expected {descriptor.size}"
            )
        return known

    def _read(self, client: Client, descriptor: Descriptor) -> bytes:
        if descriptor.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            return blob(client, descriptor.digest, descriptor.size)
        found = manifest(client, descriptor.digest, descriptor.media_type, descriptor.size)
        if found.media_type not in _UNTYPED | {descriptor.media_type}:
            raise final(f"answers {shown(found.media_type)}, expected {descriptor.media_type}")
        return found.raw


def _schema_1() -> Trouble:
    """The trouble with a manifest of the first schema, whose layers no digest of the image holds together."""
    return final(
        "its manifest is Docker's schema 1, which is not read",
        ImageUnsupported,
        "skopeo copy --format v2s2 makes an image of schema 2 from it",
    )


def manifest(client: Client, reference: str, accept: str, longest: int) -> Document:
    """A manifest or an index by its tag or digest, its digest checked.  Raises Trouble."""
    response = client.get(f"manifests/{reference}", {"Accept": accept})
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in ("text/html", "application/xhtml+xml"):
        response.close()
        raise final("answers with a page of HTML; no registry speaks there, or a portal stands before it")
    promised = response.headers.get("docker-content-digest", "")
    raw = _read(response, client, longest)
    if media_type in SCHEMA_1:
        raise _schema_1()
    if media_type not in _UNTYPED | MANIFEST_TYPES | INDEX_TYPES and not media_type.endswith("json"):
        raise final(f"answers {shown(media_type)}, which is no manifest and no index")
    if promised and not is_digest(promised):
        raise final(f"answers with the digest {shown(promised)}, which is none")
    for expected in (reference if is_digest(reference) else "", promised):
        if expected and digest_of(raw, expected) != expected:
            raise final(
                f"its manifest has digest {digest_of(raw, expected)}, expected {expected}",
                ImageDigestMismatch,
            )
    return Document(raw, reference if is_digest(reference) else digest_of(raw, "sha256:"), media_type)


def blob(client: Client, digest: str, size: int) -> bytes:
    """A small blob, whole, its digest checked.  Raises Trouble."""
    response = client.get(f"blobs/{digest}", {})
    raw = _read(response, client, size, ImageDigestMismatch)
    if digest_of(raw, digest) != digest:
        raise final(f"its blob has digest {digest_of(raw, digest)}, expected {digest}", ImageDigestMismatch)
    return raw


def _read(
    response: BaseHTTPResponse,
    client: Client,
    longest: int,
    kind: type[HpcpodError] = ImageLimitExceeded,
) -> bytes:
    """The body; one that is longer than was promised, or than any document may be, is refused early.

    kind: of the error for that.
    """
    announced = response.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:19]) > longest:
        response.close()
        raise final(f"announces {int(announced[:19])} bytes, expected at most {longest}", kind)
    return read_body(response, longest, client.patience, kind)


def digest_of(raw: bytes, like: str) -> str:
    """The digest of bytes, by the algorithm of another."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
