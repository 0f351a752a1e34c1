# SPDX-License-Identifier: Apache-2.0
"""Signatures in a SIF file, and the digests that the file really has.  Pure.

What of the header and of a descriptor is signed is said in github.com/sylabs/sif: sif.go and descriptor.go,
GetIntegrityReader.  Places in the file and times of change are not; numbers count from the lowest of the
object's group.  What the digests are compared with is in a signature's message, which trust alone opens.
"""

from __future__ import annotations

import hashlib
import json
import struct

from hpcpod.errors import ImageLimitExceeded
from hpcpod.images.sources import sif
from hpcpod.images.sources.sif import DESCRIPTOR, HEADER, KINDS, Sif, SifObject
from hpcpod.images.trust.facts import Signature, SignatureKind

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MESSAGE_MAX = 1 << 20
"""Bytes of a signature; one over a thousand objects has less than a quarter."""
_ALGORITHMS = ("sha384", "sha512")
"""Beside sha256, which Apptainer uses: computed where a message names them."""
_CHUNK = 1 << 20
_SIGNED_DESCRIPTOR = struct.Struct("<i?IIqqqq128s384s")
_TABLE_AT = struct.Struct("<q")
_TABLE_FIELD = 96
"""Where in the header the offset of the table of descriptors stands."""

Digests = dict[str, str]


def signatures(image: Sif, read: Callable[[int, int], bytes], origin: str) -> tuple[Signature, ...]:
    """The file's signature objects, as trust/facts.py wants them.  Raises ImageLimitExceeded.

    read: gives bytes from an offset.  origin: the file's name, printable.
    """
    found = [each for each in image.objects if each.kind == KINDS[sif.SIGNATURE]]
    messages = [_message(each, read) for each in found]
    if not found:
        return ()
    names = ("sha256", *(name for name in _ALGORITHMS if any(name.encode() in raw for raw in messages)))
    real = _real(image, read, names)
    return tuple(
        Signature(
            SignatureKind.SIF,
            message,
            f"{origin}: object {each.number}",
            json.dumps({"first": _first(image, each), **real}).encode(),
        )
        for each, message in zip(found, messages, strict=True)
    )


def _message(found: SifObject, read: Callable[[int, int], bytes]) -> bytes:
    if found.size > MESSAGE_MAX:
        raise ImageLimitExceeded(f"sif: signature of {found.size} bytes, at most {MESSAGE_MAX}")
    return read(found.offset, found.size)


def _first(image: Sif, signature: SifObject) -> int:
    """The lowest number in the group that a signature is of; one of an object is of that one's group."""
    group = signature.link
    if not signature.of_group:
        group = next((each.group for each in image.objects if each.number == signature.link), 0)
    return _lowest(image, group)


def _lowest(image: Sif, group: int) -> int:
    return min((each.number for each in image.objects if each.group == group), default=0)


def _real(image: Sif, read: Callable[[int, int], bytes], names: tuple[str, ...]) -> dict[str, object]:
    """Digests of the header, and of all objects but signatures."""
    head = read(0, HEADER.size)
    launch, magic, version, _, identity = HEADER.unpack(head)[:5]
    (table,) = _TABLE_AT.unpack_from(head, _TABLE_FIELD)
    raw = {}
    for number in range(image.descriptors):
        fields = DESCRIPTOR.unpack(read(table + number * DESCRIPTOR.size, DESCRIPTOR.size))
        if fields[1]:
            raw[fields[2]] = fields
    objects = {
        str(each.number): {
            "descriptor": _digests([_signed(image, each, raw[each.number])], names),
            "data": _digests(_pieces(each, read), names),
        }
        for each in image.objects
        if each.kind != KINDS[sif.SIGNATURE]
    }
    return {"header": _digests([launch + magic + version + identity], names), "objects": objects}


def _signed(image: Sif, found: SifObject, fields: tuple[int, ...]) -> bytes:
    """What is signed of a descriptor."""
    kind, used, number, _, link, _, size, _, created, _, user, group, name, extra = fields
    relative = number - _lowest(image, found.group)
    return _SIGNED_DESCRIPTOR.pack(kind, used, relative, link, size, created, user, group, name, extra)


def _pieces(found: SifObject, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """An object's data, a piece at a time."""
    for at in range(0, found.size, _CHUNK):
        yield read(found.offset + at, min(_CHUNK, found.size - at))


def _digests(pieces: Iterable[bytes], names: tuple[str, ...]) -> Digests:
    hashes = [hashlib.new(name) for name in names]
    for piece in pieces:
        for each in hashes:
            each.update(piece)
    return {name: each.hexdigest() for name, each in zip(names, hashes, strict=True)}
