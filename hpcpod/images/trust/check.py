# SPDX-License-Identifier: Apache-2.0
"""One signature against one demand: by whom it is, for what image, for what name."""

from __future__ import annotations

import hashlib
import os

from hpcpod.frozen import frozen
from hpcpod.images.trust import payload
from hpcpod.images.trust.facts import Check, Signature, SignatureKind, Subject
from hpcpod.images.trust.gates import Demand
from hpcpod.images.trust.gpgstatus import Outcome
from hpcpod.images.trust.identity import accepts
from hpcpod.images.trust.keys import OPENPGP, PEM, Key, PacketError, dearmored, packets
from hpcpod.images.trust.payload import Claim, PayloadError
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from hpcpod.images.trust.gpg import Home

SIGNATURES_MAX = 64
"""Signatures of one image that are looked at."""
MESSAGE_MAX = 4 << 20
_CHUNK = 1 << 20
_BY_OPENPGP = (SignatureKind.SIMPLE, SignatureKind.DETACHED, SignatureKind.SIF)
_OF_TRANSPORT = {SignatureKind.DETACHED: "aci", SignatureKind.SIF: "sif"}
"""Kinds that belong to one format; all others go with any transport."""
_SIGNED = (4, 2, 8)
"""How a signed message begins: one-pass signature, signature, or compressed (RFC 4880, section 11.3)."""


@frozen
class Result:
    """A check; and where it is good, by which primary key, and when that ends to be true (0: never)."""

    check: Check
    key: str = ""
    until: int = 0


class Checker:
    """Checks signatures of one image with the keys of one demand.  A context manager.

    now: seconds since 1970.  revoked: fingerprints of keys that count no more.
    """

    def __init__(
        self, demand: Demand, subject: Subject, now: int, revoked: frozenset[str], words: str
    ) -> None:
        self._demand = demand
        self._subject = subject
        self._now = now
        self._revoked = revoked
        self._words = words
        self._openpgp = tuple(key for key in demand.keys if key.kind == OPENPGP)
        self._pem = tuple(key for key in demand.keys if key.kind == PEM)
        self._home: Home | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove gpg's directory."""
        if self._home is not None:
            self._home.close()

    def counts(self, signature: Signature) -> bool:
        """Whether a signature of this kind can be by one of the keys at all."""
        of = _OF_TRANSPORT.get(signature.kind, self._subject.transport)
        keys = self._openpgp if signature.kind in _BY_OPENPGP else self._pem
        return bool(keys) and of == self._subject.transport

    def results(self, signature: Signature) -> tuple[Result, ...]:
        """What became of it; more than one where a file holds several.  Raises TrustUnusable."""
        if len(signature.message) > MESSAGE_MAX:
            return (self._bad(signature, f"longer than {MESSAGE_MAX} bytes"),)
        try:
            return tuple(_CHECKS[signature.kind](self, signature))
        except (PayloadError, PacketError) as error:
            return (self._bad(signature, f"not valid: {error}"),)

    # ---------------------------------------------------------------- OpenPGP

    def _simple(self, signature: Signature) -> Iterator[Result]:
        message = dearmored(signature.message, "MESSAGE")
        first = message[:1]
        tag = first[0] & 0x3F if first and first[0] & 0x40 else (first[0] >> 2) & 0x0F if first else 0
        if not first or not first[0] & 0x80 or tag not in _SIGNED:
            raise PacketError("not a signed message")
        outcome, text = self._gpg().message(message)
        yield self._judged(signature, outcome, lambda: payload.parse_claim(text, payload.SIMPLE))

    def _sif(self, signature: Signature) -> Iterator[Result]:
        message = signature.message.strip(b"\r\n\0 ")
        heads = (b"-----BEGIN PGP SIGNED MESSAGE-----", b"-----END PGP SIGNATURE-----")
        if not message.startswith(heads[0]) or not message.endswith(heads[1]):
            raise PacketError("not a clear-signed message")
        if any(message.count(head) != 1 for head in heads):
            raise PacketError("more than one message")
        outcome, text = self._gpg().message(message + b"\n", clear=True)

        def same() -> None:
            payload.compare_sif(text, signature.payload)

        yield self._judged(signature, outcome, same)

    def _detached(self, signature: Signature) -> Iterator[Result]:
        parts = [(tag, whole) for tag, _, whole in packets(dearmored(signature.message, "SIGNATURE"))]
        if not parts or any(tag != 2 for tag, _ in parts):
            raise PacketError("not a signature")
        if len(parts) > SIGNATURES_MAX:
            raise PacketError(f"more than {SIGNATURES_MAX} signatures")
        for _, whole in parts:
            outcome = self._over_file(signature, whole)
            yield self._judged(signature, outcome, lambda: None)

    def _over_file(self, signature: Signature, packet: bytes) -> Outcome:
        """Check a signature over the image file, which must be the one that the source has read."""
        algorithm, _, digits = signature.payload.decode("ascii", "replace").partition(":")
        if algorithm not in ("sha256", "sha512") or not self._subject.file:
            raise PayloadError("what it is over is not known")
        digest = hashlib.new(algorithm)
        try:
            fd = os.open(self._subject.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            raise PayloadError("the image file cannot be read again") from None

        def feed(write: Callable[[bytes], object]) -> None:
            while chunk := os.read(fd, _CHUNK):
                digest.update(chunk)
                write(chunk)

        try:
            outcome = self._gpg().detached(packet, feed, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        if outcome.good and digest.hexdigest() != digits:
            raise PayloadError("the image file changed since it was read")
        return outcome

    def _gpg(self) -> Home:
        if self._home is None:
            from hpcpod.images.trust.gpg import Home

            self._home = Home(self._openpgp, self._now)
        return self._home

    def _judged(self, signature: Signature, outcome: Outcome, claim: Callable[[], Claim | None]) -> Result:
        """What follows from what gpg says and from what was signed.  claim: parsed, or None for no name."""
        key = outcome.fingerprint
        if not outcome.good:
            return self._bad(signature, outcome.found, key)
        if key not in {known.fingerprint for known in self._openpgp}:
            return self._bad(signature, "by a key that is not asked for", key)
        if {key, outcome.signer} & self._revoked:
            return self._bad(signature, "by a key that a trust directory revokes", key)
        try:
            said = claim()
        except PayloadError as error:
            return self._bad(signature, f"not valid: {error}", key)
        wrong = self._wrong(said) if said is not None else ""
        if wrong:
            return self._bad(signature, wrong, key)
        return Result(Check(self._words, signature.origin, key, True, "good"), key, outcome.until)

    # ---------------------------------------------------------------- cosign

    def _cosign(self, signature: Signature) -> Iterator[Result]:
        raw = payload.decoded(signature.message.decode("ascii", "replace").strip(), "signature")
        key = self._signer(raw, signature.payload, "")
        if key is None:
            yield self._bad(signature, "by none of these keys, or over something else")
        else:
            yield self._by(signature, key, lambda: payload.parse_claim(signature.payload, payload.COSIGN))

    def _bundle(self, signature: Signature) -> Iterator[Result]:
        bundle = payload.parse_bundle(signature.message)
        key = self._signer(bundle.signature, bundle.signed, bundle.digest)
        if key is None:
            hint = f" (it says: key {bundle.hint})" if bundle.hint else ""
            yield self._bad(signature, f"by none of these keys, or over something else{hint}")
        elif bundle.signed is None:
            yield self._by(signature, key, lambda: Claim(((bundle.digest, ""),)))
        else:
            yield self._by(signature, key, lambda: payload.parse_statement(bundle.payload))

    def _signer(self, raw: bytes, signed: bytes | None, digest: str) -> Key | None:
        from hpcpod.images.trust.sigstore import verified

        return next((key for key in self._pem if verified(key, raw, signed, digest)), None)

    def _by(self, signature: Signature, key: Key, claim: Callable[[], Claim]) -> Result:
        name = key.fingerprint
        if name in self._revoked:
            return self._bad(signature, "by a key that a trust directory revokes", name)
        try:
            wrong = self._wrong(claim())
        except PayloadError as error:
            wrong = f"not valid: {error}"
        if wrong:
            return self._bad(signature, wrong, name)
        return Result(Check(self._words, signature.origin, name, True, "good"), name)

    # ---------------------------------------------------------------- what was signed

    def _wrong(self, claim: Claim) -> str:
        """Why a good signature is not for this image; empty where it is."""
        images = (self._subject.digest, *self._subject.within)
        names = [name for digest, name in claim.digests if digest in images]
        if not names:
            found = shown(claim.digests[0][0]) if claim.digests else "nothing"
            return f"for another image: {found}"
        for name in names:
            if name and accepts(self._demand.identity, self._subject.identity, name):
                return ""
            if not name and self._demand.nameless:
                return ""
        if not any(names):
            return "for no name, but the rule asks for one (bundles of cosign 3 have none)"
        return f"for another name: {', '.join(shown(name) for name in names if name)}"

    def _bad(self, signature: Signature, found: str, key: str = "") -> Result:
        tried = key or ", ".join(known.fingerprint for known in self._tried(signature))
        return Result(Check(self._words, signature.origin, tried, False, found))

    def _tried(self, signature: Signature) -> tuple[Key, ...]:
        return self._openpgp if signature.kind in _BY_OPENPGP else self._pem


_CHECKS = {
    SignatureKind.SIMPLE: Checker._simple,
    SignatureKind.SIF: Checker._sif,
    SignatureKind.DETACHED: Checker._detached,
    SignatureKind.COSIGN: Checker._cosign,
    SignatureKind.BUNDLE: Checker._bundle,
}
