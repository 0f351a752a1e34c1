# SPDX-License-Identifier: Apache-2.0
"""What trust is asked about, what speaks for it, and what it answers.  Pure.

Sources collect signatures; this room alone says what they are worth.  A signature that nobody has checked is
a :class:`Signature`; only ``judge`` makes a :class:`Verdict` of it.
"""

from __future__ import annotations

from enum import Enum

from hpcpod.frozen import frozen


class SignatureKind(Enum):
    """How a signature is made, and thereby who can check it."""

    SIMPLE = "simple"
    """An OpenPGP message around a JSON payload: containers-signature(5), "simple signing"."""
    COSIGN = "cosign"
    """Payload in a layer, signature in an annotation: cosign's SIGNATURE_SPEC, tag ``sha256-HEX.sig``."""
    BUNDLE = "bundle"
    """A sigstore bundle, as cosign 3 attaches it to an image as a referrer."""
    DETACHED = "detached"
    """An OpenPGP signature over the whole image file: an App Container Image's ``.aci.asc``."""
    SIF = "sif"
    """The clear-signed message of a SIF file's signature object, over digests of its other objects."""


@frozen
class Signature:
    """A signature that somebody attached to an image; not checked.

    message: the signature as it was found: bytes of an OpenPGP message, of a sigstore bundle, of the file
    beside an image (DETACHED; all signatures in it count, each for itself), or of a base64 text (COSIGN).
    origin: where it was found, printable, without credentials.  payload: what was signed, where it is apart
    from the signature:

    COSIGN: the signed JSON.  DETACHED: the digest of the whole image file as the source has read it,
    ``sha256:HEX`` or ``sha512:HEX``: the file is read again to check the signature, and must be the same.
    SIF: JSON of the digests that the file really has::

        {"first": 1, "header": {"sha256": HEX},
         "objects": {"1": {"descriptor": {"sha256": HEX}, "data": {"sha256": HEX}}, ...}}

    with *all* objects of the file but its signatures, by number; first: the lowest number in the group that
    the signature is of, from which the signed relative numbers count.  HEX by other algorithms (sha384,
    sha512) may stand beside; a signature over one that is missing is not accepted.  What of header and
    descriptor is hashed is said in github.com/sylabs/sif, pkg/integrity.
    """

    kind: SignatureKind
    message: bytes
    origin: str
    payload: bytes = b""


@frozen
class Subject:
    """The image that is to run.

    transport: as containers-policy.json(5) names it (``docker``, ``oci``, ``dir`` …; ``aci``, ``sif``,
    ``sqsh``, ``erofs`` are this program's own).  scopes: that a policy may name, the most specific first, the
    transport's default not among them.  identity: the name that a signature may be for, a full Docker
    reference with tag or digest; empty where the transport has none.  digest: of the manifest that runs.
    within: digests of the indexes that led to that manifest; who signs one of them signs what it lists.
    file: path of the image file that DETACHED signatures are over; empty for none.
    """

    transport: str
    scopes: tuple[str, ...]
    identity: str
    digest: str
    within: tuple[str, ...] = ()
    file: str = ""


@frozen
class Check:
    """What became of one signature under one requirement.

    key: fingerprint or path of the key that was tried, or asked for.  found: in words, what was found
    (``good``, ``expired on 2026-01-01``, ``signed for docker.io/me/other:1``).
    """

    requirement: str
    origin: str
    key: str
    good: bool
    found: str


@frozen
class Verdict:
    """Whether the image may run, and why.

    rule: which file and which scope in it decided, printable; empty where there is no policy at all.
    expected: what the rule asks for, in words.  until: seconds since 1970 when this ends to be true (the
    first of the accepted keys and signatures to expire); 0 for never.
    """

    accepted: bool
    rule: str
    expected: str
    checks: tuple[Check, ...] = ()
    until: int = 0


def path_scopes(path: str) -> tuple[str, ...]:
    """What a policy may name of an image that lies at a path: it, and the directories above it but the root.

    path: absolute, without symbolic links, as containers-policy.json(5) asks for.
    """
    parts = path.split("/")
    return tuple("/".join(parts[:count]) for count in range(len(parts), 1, -1))
