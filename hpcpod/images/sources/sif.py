# SPDX-License-Identifier: Apache-2.0
"""The Singularity Image Format, version 1: header and descriptors, bytes in, frozen facts out.

The layout is that of the format's own library (github.com/sylabs/sif, pkg/sif/sif.go and descriptor.go): a
header of 128 bytes, a table of descriptors of 585 bytes, and the objects that they describe; numbers are
little-endian.  Whatever two readers could take differently is refused: objects that overlap, names with
something behind their end, two primary partitions.
"""

from __future__ import annotations

import struct

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
PARTITION = struct.Struct("<ii3s")
MAGIC = b"SIF_MAGIC\0"
VERSION = b"01\0"

DEFFILE, ENVIRONMENT, LABELS, PARTITIONS, SIGNATURE, GENERIC_JSON = range(0x4001, 0x4007)
OCI_INDEX = 0x400A
KINDS = {
    DEFFILE: "definition file",
    ENVIRONMENT: "environment",
    LABELS: "labels",
    PARTITIONS: "partition",
    SIGNATURE: "signature",
    GENERIC_JSON: "JSON",
    0x4007: "data",
    0x4008: "cryptographic message",
    0x4009: "bill of materials",
    OCI_INDEX: "OCI index",
    0x400B: "OCI blob",
}
SQUASHFS = 1
FILE_SYSTEMS = {SQUASHFS: "squashfs", 2: "ext3", 3: "archive", 4: "raw", 5: "encrypted squashfs"}
PRIMARY = 2
USES = {1: "system", PRIMARY: "primary system", 3: "data", 4: "overlay"}
ARCHITECTURES = {
    b"00\0": "",
    b"01\0": "386",
    b"02\0": "amd64",
    b"03\0": "arm",
    b"04\0": "arm64",
    b"05\0": "ppc64",
    b"06\0": "ppc64le",
    b"07\0": "mips",
    b"08\0": "mipsle",
    b"09\0": "mips64",
    b"10\0": "mips64le",
    b"11\0": "s390x",
    b"12\0": "riscv64",
    b"13\0": "loong64",
}
"""arch.go: codes, and Go's names; empty for unknown."""
_GROUP = 0xF0000000
"""Set in the number of a group, and in a link to one."""


@frozen
class Partition:
    """What a partition's descriptor says of it.  architecture: Go's name, empty for unknown."""

    file_system: str
    use: str
    architecture: str


@frozen
class SifObject:
    """One descriptor.  offset, size: of its data, in the file.  group, link: 0 for none.

    of_group: whether link is the number of a group.
    """

    number: int
    kind: str
    offset: int
    size: int
    name: str
    group: int
    link: int
    of_group: bool
    partition: Partition | None


@frozen
class Sif:
    """A file's header and its objects in the order of the table.

    launch: the first line, with which the file can be executed.  identity: its UUID.
    created, modified: seconds since 1970 as they are written, which may be any number.
    descriptors: in the table, the free ones too.
    """

    launch: str
    architecture: str
    identity: str
    created: int
    modified: int
    objects: tuple[SifObject, ...]
    descriptors: int

    @property
    def primary(self) -> SifObject | None:
        """The partition that holds the root file system."""
        for found in self.objects:
            if found.partition is not None and found.partition.use == USES[PRIMARY]:
                return found
        return None


def parse_sif(read: Callable[[int, int], bytes], size: int, limits: Limits) -> Sif:
    """Header and descriptors of a file of this size.  Raises ImageInvalid, ImageLimitExceeded.

    read: gives that many bytes from an offset, fewer at the file's end.
    """
    raw = read(0, HEADER.size)
    if len(raw) < HEADER.size:
        raise ImageInvalid("sif: ends in its header")
    launch, magic, version, arch, identity, *numbers = HEADER.unpack(raw)
    if magic != MAGIC:
        raise ImageInvalid(
            "sif: does not have the mark of one", hint="SIF_MAGIC stands at byte 32 of a SIF file"
        )
    if version != VERSION:
        raise ImageInvalid(f"sif: version {shown(version.rstrip(bytes(1)))}, expected 01")
    created, modified, free, total, table, table_size, start, length = numbers
    if not 0 <= free <= total:
        raise ImageInvalid(f"sif: {free} of {total} descriptors are free")
    if total > limits.descriptors:
        raise ImageLimitExceeded(f"sif: {total} descriptors, limit descriptors {limits.descriptors}")
    if table_size != total * DESCRIPTOR.size or table < HEADER.size or table + table_size > size:
        raise ImageInvalid("sif: its table of descriptors is not where it says")
    if start < table + table_size or length < 0 or start + length > size:
        raise ImageInvalid("sif: its data are not where it says")
    raw = read(table, table_size)
    if len(raw) != table_size:
        raise ImageInvalid("sif: ends in its table of descriptors")
    objects = tuple(
        _object(fields, start, start + length) for fields in DESCRIPTOR.iter_unpack(raw) if fields[1]
    )
    if len(objects) != total - free:
        raise ImageInvalid(f"sif: {len(objects)} descriptors in use, expected {total - free}")
    architecture = _architecture(arch)
    _check_objects(objects, architecture)
    return Sif(
        _text(launch, "launch script", "\n"), architecture, _uuid(identity), created, modified, objects, total
    )


def _object(fields: tuple[int, ...], start: int, end: int) -> SifObject:
    """A descriptor in use; start, end: where objects may lie."""
    kind, _, number, group, link, offset, size, padded, *_, name, extra = fields
    what = f"sif: object {number}"
    if not number:
        raise ImageInvalid("sif: an object without a number")
    if not start <= offset <= offset + size <= end or padded < size:
        raise ImageInvalid(f"{what}: its data are not within the file's")
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    return SifObject(
        number=number,
        kind=KINDS.get(kind, f"kind {kind:#x}"),
        offset=offset,
        size=size,
        name=_text(name, f"name of object {number}"),
        group=group & ~_GROUP,
        link=link & ~_GROUP,
        of_group=link & _GROUP == _GROUP,
        partition=_partition(extra, what) if kind == PARTITIONS else None,
    )


def _partition(extra: bytes, what: str) -> Partition:
    file_system, use, arch = PARTITION.unpack_from(extra)
    if file_system not in FILE_SYSTEMS or use not in USES:
        raise ImageInvalid(f"{what}: a partition of file system {file_system} and use {use}")
    return Partition(FILE_SYSTEMS[file_system], USES[use], _architecture(arch))


def _check_objects(objects: tuple[SifObject, ...], architecture: str) -> None:
    """What is true of a file's objects together."""
    if len({found.number for found in objects}) != len(objects):
        raise ImageInvalid("sif: two objects with one number")
    end = 0
    for found in sorted(objects, key=lambda found: (found.offset, found.size)):
        if found.offset < end:
            raise ImageInvalid(f"sif: object {found.number}: overlaps another")
        end = found.offset + found.size
    primary = [
        found.partition for found in objects if found.partition and found.partition.use == USES[PRIMARY]
    ]
    if len(primary) > 1:
        raise ImageInvalid("sif: two primary partitions")
    if primary and primary[0].architecture != architecture:
        raise ImageInvalid(
            f"sif: for {architecture or 'unknown'} by its header, for "
            f"{primary[0].architecture or 'unknown'} by its primary partition"
        )


def _architecture(code: bytes) -> str:
    found = ARCHITECTURES.get(code)
    if found is None:
        raise ImageInvalid(f"sif: architecture {shown(code.rstrip(bytes(1)))} is unknown")
    return found


def _text(field: bytes, what: str, ending: str = "") -> str:
    """A string that NUL ends; what stands behind it must be NUL.  ending: what it may end with."""
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
        raise ImageInvalid(f"sif: {what}: something stands behind its end")
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        raise ImageInvalid(f"sif: {what}: not UTF-8") from None
    if not decoded.removesuffix(ending).isprintable():
        raise ImageInvalid(f"sif: {what}: holds control characters")
    return decoded


def _uuid(raw: bytes) -> str:
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
