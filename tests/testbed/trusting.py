# SPDX-License-Identifier: Apache-2.0
"""Gates made by hand, and images to judge: what tests of trust have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcpod.images.trust.facts import Signature, SignatureKind, Subject, Verdict
from hpcpod.images.trust.gates import Demand, Gate, Gates, Place
from hpcpod.images.trust.identity import Identity
from hpcpod.images.trust.judge import judge
from hpcpod.images.trust.keys import Key
from tests.testbed.acis import aci
from tests.testbed.layouts import directory, file
from tests.testbed.sifs import ENVIRONMENT, Object, partition, sif
from tests.testbed.signing import Gpg, sif_message, sif_payload, simple_payload

DIGEST = "sha256:" + "a1" * 32
OTHER = "sha256:" + "b2" * 32
INDEX = "sha256:" + "c3" * 32
NAME = "registry.example.com/site/app:1"
REPOSITORY = "registry.example.com/site/app"
IMAGE = Subject(
    "docker", (NAME, REPOSITORY, "registry.example.com/site", "registry.example.com"), NAME, DIGEST, (INDEX,)
)


def gates_of(*demands: Demand, revoked: Sequence[str] = ()) -> Gates:
    """A site whose default asks for this."""
    gate = Gate("site", default=Place("policy.json", "default", demands))
    return Gates(gate, Gate("user"), frozenset(revoked), (), "", "accept")


def asked(*keys: Key, threshold: int = 1, kind: str = "prefix", **more: Any) -> Demand:
    """What `hpcpod trust add` asks for, or a policy: kind signedBy or sigstoreSigned."""
    if kind == "prefix":
        more = {"identity": Identity("matchRepository"), "nameless": True} | more
    return Demand(kind, keys, threshold, **more)


def verdict(
    demand: Demand,
    signatures: Sequence[Signature],
    image: Subject = IMAGE,
    *,
    now: int = 0,
    revoked: Sequence[str] = (),
) -> Verdict:
    """What a site that asks for this says."""
    return judge(
        gates_of(demand, revoked=revoked), image, tuple(signatures), now or int(time.time()) + 1, site=True
    )


# --------------------------------------------------------------------------- three ways to sign

Sign = Callable[..., Signature]


@dataclass
class Signed:
    """An image of one kind, and the ways to sign it.

    sign(BY..., at=, expires=, more=): a good signature.  another: one over another image.  bent: a good one,
    and the same with some byte changed.
    """

    kind: SignatureKind
    image: Subject
    make: Callable[..., Signature]
    other: Callable[..., Signature]
    extra: dict[str, Any] = field(default_factory=dict)


def simple(gpg: Gpg, _: Path) -> Signed:
    """An image of a registry, with simple signing."""

    def make(*by: str, digest: str = DIGEST, name: str = NAME, data: bytes = b"", **how: Any) -> Signature:
        message = gpg.message(data or simple_payload(digest, name), *by, **how)
        return Signature(SignatureKind.SIMPLE, message, "lookaside")

    return Signed(SignatureKind.SIMPLE, IMAGE, make, lambda *by, **how: make(*by, digest=OTHER, **how))


def detached(gpg: Gpg, path: Path) -> Signed:
    """An App Container Image in a file."""
    import hashlib

    data = aci(directory(b"rootfs") + file(b"rootfs/a", b"hello"))
    place = path / "image.aci"
    place.write_bytes(data)
    digest = f"sha512:{hashlib.sha512(data).hexdigest()}"
    image = Subject("aci", (str(place), str(path)), "", digest, file=str(place))
    read = f"sha256:{hashlib.sha256(data).hexdigest()}".encode()

    def make(*by: str, data: bytes = data, **how: Any) -> Signature:
        return Signature(SignatureKind.DETACHED, gpg.detached(data, *by, **how), f"{place}.asc", read)

    return Signed(SignatureKind.DETACHED, image, make, lambda *by, **how: make(*by, data=b"other", **how))


SIF = sif([Object(ENVIRONMENT, b"A=1"), partition(b"r" * 5000)], total=4)


def in_sif(gpg: Gpg, path: Path) -> Signed:
    """A SIF file."""
    place = path / "image.sif"
    place.write_bytes(SIF)
    image = Subject("sif", (str(place), str(path)), "", DIGEST, file=str(place))
    real = sif_payload(SIF)

    def make(*by: str, data: bytes = b"", **how: Any) -> Signature:
        return Signature(
            SignatureKind.SIF, gpg.clear(data or sif_message(real), *by, **how), "object 3", real
        )

    changed = json.loads(sif_message(real))
    changed["objects"][1]["objectDigest"] = "sha256:" + "0" * 64
    text = json.dumps(changed).encode()
    return Signed(SignatureKind.SIF, image, make, lambda *by, **how: make(*by, data=text, **how))


WAYS: dict[str, Callable[[Gpg, Path], Signed]] = {"simple": simple, "aci": detached, "sif": in_sif}
