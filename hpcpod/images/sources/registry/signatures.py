# SPDX-License-Identifier: Apache-2.0
"""Signatures that lie beside an image of a registry: collected, bounded, not checked (images/trust does).

cosign's of old: the tag ALGORITHM-HEX.sig (cosign, SIGNATURE_SPEC).  cosign's bundles: referrers of the
manifest (distribution-spec 1.1), or what stands in for them, the tag ALGORITHM-HEX.  Simple signatures: the
lookaside of containers-registries.d(5).  One that is not there is no error; one that cannot be had is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hpcpod.errors import HpcpodError, ImageLimitExceeded, ImageNotFound, RegistryFailed
from hpcpod.images.dockername import DockerName
from hpcpod.images.limits import Limits
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.manifest import INDEX_TYPES, MANIFEST_TYPES
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.sources.registry.attachments import Attachment, parse_attachments, parse_referrers
from hpcpod.images.sources.registry.client import Client
from hpcpod.images.sources.registry.documents import RegistryDocuments, blob, manifest
from hpcpod.images.sources.registry.files import built_in_lookaside, read_config, read_lookasides
from hpcpod.images.sources.registry.lookaside import lookaside_of, signature_url
from hpcpod.images.sources.registry.places import Places, Tries
from hpcpod.images.sources.registry.trouble import Trouble, refusal
from hpcpod.images.sources.registry.web import Web, origin_of, read_body
from hpcpod.images.trust.facts import Signature, SignatureKind
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

SIGNATURES = 64
"""Of one image, all kinds together."""
SIGNATURE_BYTES = 1 << 20
"""Of one signature, or of what it signs."""
PAGES = 8
"""Of a list of referrers."""
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ACCEPT = ", ".join(sorted(MANIFEST_TYPES))
_NO_REFERRERS = (400, 404, 405, 406, 501)
"""How registries answer that know no referrers."""


def collect(  # noqa: PLR0913, PLR0917 - where, of what, and how
    documents: RegistryDocuments,
    name: DockerName,
    digests: tuple[str, ...],
    web: Web,
    access: Access,
    limits: Limits,
) -> tuple[Signature, ...]:
    """All signatures of a manifest and of the indexes that led to it, `digests`.

    Raises RegistryFailed, RegistryDenied, ImageInvalid and its kinds, TrustUnusable.
    """
    collector = _Collector(documents.places, name, limits)
    found: list[Signature] = []
    base = lookaside_of(read_lookasides(access.environment), name, built_in_lookaside(access.environment))
    for digest in digests:
        for signature in (
            *collector.cosign(digest),
            *collector.bundles(digest),
            *_simple(base, name, digest, web, access),
        ):
            found.append(signature)
            if len(found) > SIGNATURES:
                raise ImageLimitExceeded(f"image {name}: more than {SIGNATURES} signatures")
    return tuple(found)


class _Collector:
    """Reads what is attached to images of one repository."""

    def __init__(self, places: Places, name: DockerName, limits: Limits) -> None:
        self._places = places
        self._name = name
        self._limits = limits

    def cosign(self, digest: str) -> Iterator[Signature]:
        """Those of the tag ALGORITHM-HEX.sig."""
        tag = f"{digest.replace(':', '-', 1)}.sig"
        raw = self._manifest(tag, f"signatures {tag}")
        if raw is None:
            return
        for layer in parse_attachments(raw, self._what(f"signatures {tag}"), self._limits).layers:
            if layer.signature:
                payload = self._blob(layer, f"signature {layer.digest}")
                yield Signature(SignatureKind.COSIGN, layer.signature.encode(), self._origin(tag), payload)

    def bundles(self, digest: str) -> Iterator[Signature]:
        """Those that refer to the digest."""
        for descriptor in self._referrers(digest):
            what = f"signature {descriptor.digest}"
            raw = self._manifest(descriptor.digest, what)
            if raw is None:
                raise RegistryFailed(f"{self._what(what)}: listed, but not there")
            attached = parse_attachments(raw, self._what(what), self._limits)
            for layer in attached.layers:
                if layer.is_bundle:
                    message = self._blob(layer, f"signature {layer.digest}")
                    yield Signature(SignatureKind.BUNDLE, message, self._origin(descriptor.digest))

    def _referrers(self, digest: str) -> list[Attachment]:
        what = f"referrers of {digest}"
        pages = self._try(what, lambda client: _pages(client, digest, self._limits.json_bytes))
        if pages is None:
            tag = digest.replace(":", "-", 1)
            raw = self._manifest(tag, what, accept=", ".join(sorted(INDEX_TYPES)))
            pages = [] if raw is None else [raw]
        found = [
            descriptor
            for raw in pages
            for descriptor in parse_referrers(raw, self._what(what), self._limits)
            if descriptor.may_hold_bundle and descriptor.media_type == OCI_MANIFEST
        ]
        if len(found) > SIGNATURES:
            raise ImageLimitExceeded(f"{self._what(what)}: more than {SIGNATURES}")
        return found

    def _manifest(self, reference: str, what: str, accept: str = _ACCEPT) -> bytes | None:
        longest = self._limits.json_bytes
        found = self._try(what, lambda client: manifest(client, reference, accept, longest))
        return None if found is None else found.raw

    def _blob(self, layer: Attachment, what: str) -> bytes:
        if layer.size > SIGNATURE_BYTES:
            raise ImageLimitExceeded(f"{self._what(what)}: {layer.size} bytes, at most {SIGNATURE_BYTES}")
        found, _ = self._places.ask(self._what(what), lambda client: blob(client, layer.digest, layer.size))
        return found

    def _try(self, what: str, request: Callable[[Client], T]) -> T | None:
        """What a place answers; None where it is not there."""
        try:
            return self._places.ask(self._what(what), request)[0]
        except ImageNotFound:
            return None

    def _what(self, what: str) -> str:
        return f"image {self._name}: {what}"

    def _origin(self, reference: str) -> str:
        separator = "@" if is_digest(reference) else ":"
        return f"docker://{self._name.host}/{self._name.path}{separator}{reference}"


def _pages(client: Client, digest: str, longest: int) -> list[bytes]:
    """The list of referrers, page by page.  Raises Trouble; ImageNotFound where there is no list."""
    path, pages = f"referrers/{digest}", list[bytes]()
    for _ in range(PAGES):
        try:
            response = client.get(path, {"Accept": "application/vnd.oci.image.index.v1+json"})
        except Trouble as trouble:
            if trouble.status in _NO_REFERRERS and not pages:
                trouble.kind, trouble.again = ImageNotFound, False
            raise
        following = next_page(response.headers.get("link", ""), client.place.path, digest)
        pages.append(read_body(response, longest, client.patience))
        if not following:
            return pages
        path = following
    raise Trouble(f"lists more than {PAGES} pages of referrers", kind=ImageLimitExceeded, again=False)


def next_page(link: str, repository: str, digest: str) -> str:
    """The path below the repository that a Link header calls the next; empty for none (RFC 8288)."""
    target, _, parameters = link.partition(">")
    if not target.startswith("<") or "next" not in parameters.replace('"', "").partition("rel=")[2].split():
        return ""
    _, found, rest = target.partition(f"/v2/{repository}/referrers/{digest}?")
    good = found and rest.isascii() and rest.isprintable() and " " not in rest and "#" not in rest
    return f"referrers/{digest}?{rest}" if good else ""


def _simple(base: str, name: DockerName, digest: str, web: Web, access: Access) -> Iterator[Signature]:
    """signature-1, signature-2 … of a lookaside, up to the first that is not there."""
    if not base:
        return
    for number in range(1, SIGNATURES + 2):
        url = signature_url(base, name, digest, number)
        message = _local(url) if url.startswith("file://") else _remote(url, name, web, access)
        if message is None:
            return
        yield Signature(SignatureKind.SIMPLE, message, url)


def _local(url: str) -> bytes | None:
    raw = read_config(url.removeprefix("file://"))
    if raw is not None and len(raw) > SIGNATURE_BYTES:
        raise ImageLimitExceeded(f"signature {shown(url)}: {len(raw)} bytes, at most {SIGNATURE_BYTES}")
    return raw


def _remote(url: str, name: DockerName, web: Web, access: Access) -> bytes | None:
    import threading

    host = shown(origin_of(url)[1])
    tries = Tries(web.patience, threading.Event(), access.progress.note)
    while True:
        try:
            response = web.open("GET", url, {}, "tls" not in access.insecure)
            raw = read_body(response, SIGNATURE_BYTES, web.patience)
            if response.status == 404:
                return None
            if response.status == 200:
                return raw
            raise refusal(response.status, dict(response.headers), raw, None)
        except Trouble as trouble:
            given_up = tries.wait(host, trouble)
            if given_up is not None:
                raise _failed(url, name, given_up) from None


def _failed(url: str, name: DockerName, trouble: Trouble) -> HpcpodError:
    return trouble.kind(f"image {name}: signature {shown(url)}: {trouble.text}", hint=trouble.hint)
