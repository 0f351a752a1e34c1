# SPDX-License-Identifier: Apache-2.0
"""What names of registries meant when they were last asked, and what speaks for those images.

    STORE/names/HASH    one name for one platform: the digest it meant, the subject of policies, signatures

HASH is over reference and platform.  A start that finds its image by such a name needs no network, and every
start can judge the image anew by the policy of the moment, from the signatures that were found with it.  A
name appears and changes by one rename; its file is a guard of the plans that were made from it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Sequence
from contextlib import suppress

from hpcpod.frozen import frozen
from hpcpod.images.sources.layout import stamp_of
from hpcpod.images.sources.reference import Reference, is_digest
from hpcpod.images.stores.store import Store
from hpcpod.images.trust.facts import Signature, SignatureKind, Subject
from hpcpod.model import FileStamp, Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any

REMEMBERED = ("docker", "aci", "sif", "sqsh", "erofs", "dir")
"""Transports whose meaning is dear to find out: over a network, or by reading a whole file or tree."""
LARGEST = 32 << 20
"""Bytes of a file of names: signatures are bounded where they are collected."""
_VERSION = 1


@frozen
class Known:
    """What a name meant.

    digest: of the manifest.  signatures: those found with it; None where nobody looked for any, since no
    policy asked.  identity: of the file or tree, what it then had.  when: seconds since 1970.  stamp: of the
    file that says so.
    """

    digest: str
    subject: Subject
    signatures: tuple[Signature, ...] | None = None
    identity: str = ""
    when: int = 0
    stamp: FileStamp | None = None


def key_of(reference: Reference, platform: Platform) -> str:
    """Name of the file for a reference and a platform."""
    import hashlib  # not on the way of images that are files

    return hashlib.sha256(f"{reference}\0{platform}".encode("utf-8", "surrogateescape")).hexdigest()


def _directory(store: Store) -> str:
    return f"{store.directory}/names"


def path_of(store: Store, key: str) -> str:
    """Where a store keeps what a name meant."""
    return f"{_directory(store)}/{key}"


def recall(stores: Sequence[Store], reference: Reference, platform: Platform) -> Known | None:
    """What a name meant when it was asked last; None where no store knows, or what it knows is damaged."""
    found = []
    for store in stores:
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found.append(_load(path_of(store, key_of(reference, platform))))
    return max(found, key=lambda known: known.when, default=None)


def _load(path: str) -> Known:
    """Raises OSError; ValueError and its like for what is none of this program's."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        fields = json.loads(file.read(LARGEST + 1))
    if (
        fields["version"] != _VERSION
        or not is_digest(fields["digest"])
        or not isinstance(fields["identity"], str)
    ):
        raise ValueError
    found = fields["signatures"]
    return Known(
        digest=fields["digest"],
        subject=_subject(fields["subject"], fields["digest"]),
        signatures=None if found is None else tuple(map(_signature, found)),
        identity=fields["identity"],
        when=int(fields["when"]),
        stamp=stamp_of(path, status),
    )


def _subject(fields: dict[str, Any], digest: str) -> Subject:
    """What policies are asked about.  Raises ValueError, TypeError for what is none, or of another image."""
    lists = {name: fields[name] for name in ("scopes", "within")}
    texts = {name: fields[name] for name in ("transport", "identity", "digest", "file")}
    words = [word for values in (*lists.values(), list(texts.values())) for word in values]
    if not all(isinstance(values, list) for values in lists.values()) or len(fields) != len(lists) + len(
        texts
    ):
        raise TypeError
    if not all(isinstance(word, str) for word in words) or texts["digest"] != digest:
        raise ValueError
    scopes, within = (tuple(lists[name]) for name in ("scopes", "within"))
    return Subject(texts["transport"], scopes, texts["identity"], digest, within, texts["file"])


def _signature(fields: dict[str, str]) -> Signature:
    import base64

    return Signature(
        kind=SignatureKind(fields["kind"]),
        message=base64.b64decode(fields["message"], validate=True),
        origin=fields["origin"],
        payload=base64.b64decode(fields["payload"], validate=True),
    )


def to_bytes(known: Known) -> bytes:
    """The content of a file of names."""
    import base64

    found = None
    if known.signatures is not None:
        found = [
            {
                "kind": signature.kind.value,
                "origin": signature.origin,
                "message": base64.b64encode(signature.message).decode(),
                "payload": base64.b64encode(signature.payload).decode(),
            }
            for signature in known.signatures
        ]
    document = {
        "version": _VERSION,
        "digest": known.digest,
        "subject": vars(known.subject),
        "signatures": found,
        "identity": known.identity,
        "when": known.when or int(time.time()),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def remember(store: Store, key: str, content: bytes, mode: int = 0o600, scratch: str = "") -> FileStamp:
    """Write down what a name means; the identity of the file.  Raises StoreFull, StoreUnusable.

    scratch: where it is made; empty for tmp/.
    """
    from hpcpod.images.stores.embryo import make_embryo
    from hpcpod.images.unpacking.layers import write_error

    path = path_of(store, key)
    try:
        with suppress(FileExistsError):
            os.mkdir(_directory(store), 0o755 if store.site else 0o700)
        embryo = make_embryo(scratch or store.tmp)
        try:
            fd = os.open("name", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=embryo.fd)
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.rename(f"{embryo.path}/name", path)
        finally:
            embryo.discard()
        return stamp_of(path, os.stat(path))
    except OSError as error:
        raise write_error(error, store.directory) from None


def forget(store: Store, here: Container[str]) -> int:
    """Remove names of images that are in no store any more; how many.  here: the digests.  Raises OSError."""
    removed = 0
    with suppress(FileNotFoundError):
        for name in os.listdir(_directory(store)):
            path = path_of(store, name)
            try:
                known: Known | None = _load(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                known = None
            if known is None or known.digest not in here:
                os.unlink(path)
                removed += 1
    return removed
