# SPDX-License-Identifier: Apache-2.0
"""SIF files: header and descriptors; any bytes are read or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.sif import KINDS, Sif, parse_sif
from tests.testbed.sif_sample import REAL
from tests.testbed.sifs import (
    DESCRIPTOR,
    ENVIRONMENT,
    GROUP,
    HEADER,
    JSON,
    PARTITION,
    SIGNATURE,
    TABLE,
    Object,
    objects,
    partition,
    sif,
)


def parse(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Sif:
    return parse_sif(lambda at, count: data[at : at + count], len(data), limits)


def test_a_real_file() -> None:
    found = parse(REAL)
    assert (found.architecture, found.launch) == ("386", "")
    assert [each.kind for each in found.objects] == ["partition", "partition", "signature"]
    root = found.primary
    assert root is not None
    assert root.partition is not None
    assert (root.number, root.partition.file_system, root.size) == (2, "squashfs", 4096)
    assert REAL[root.offset :].startswith(b"hsqs")
    signature = found.objects[2]
    assert (signature.link, signature.of_group) == (1, True)


@given(objects(), st.integers(0, 3))
def test_what_was_written_is_read(written: list[Object], spare: int) -> None:
    data = sif(written, total=len(written) + spare)
    found = parse(data)
    assert found.launch == "#!/usr/bin/env run-singularity\n"
    assert [each.number for each in found.objects] == list(range(1, len(written) + 1))
    for each, expected in zip(found.objects, written, strict=True):
        assert data[each.offset : each.offset + each.size] == expected.data
        assert each.kind == KINDS.get(expected.kind, f"kind {expected.kind:#x}")
        assert each.name == expected.name.decode()
        assert (each.link, each.of_group) == (expected.link & ~GROUP, bool(expected.link & GROUP))
        assert (each.partition is not None) is (expected.kind == PARTITION)


ROOT = partition(b"r" * 50)
END = TABLE + 48 * DESCRIPTOR
BAD: dict[str, bytes] = {
    "empty": b"",
    "cut in the header": sif([ROOT])[: HEADER - 1],
    "cut in the table": sif([ROOT])[: TABLE + 100],
    "cut in the data": sif([ROOT])[:-1],
    "magic": sif([], magic=b"SIF_MAGIK"),
    "version": sif([], version=b"02"),
    "version with something behind": sif([], version=b"01x"),
    "architecture": sif([], arch="99"),
    "more free than there are": sif([], free=49),
    "fewer than none are free": sif([], free=-1),
    "more in use than it says": sif([ROOT], free=48),
    "fewer in use than it says": sif([ROOT], free=46),
    "table in the header": sif([], table=100),
    "table behind the end": sif([], table=1 << 40),
    "table at a negative offset": sif([], table=-1),
    "table of another size": sif([], table_size=584),
    "table of negative size": sif([], table_size=-585),
    "data in the table": sif([ROOT], data=END - 1),
    "data behind the end": sif([ROOT], data_size=1 << 62),
    "negative data": sif([ROOT], data_size=-1),
    "launch script with an escape": sif([], launch=b"\x1b[2J"),
    "launch script with something behind": sif([], launch=b"a\0b"),
    "object in the header": sif([partition(b"x", offset=0)]),
    "object in the table": sif([partition(b"x", offset=TABLE)]),
    "object behind the end": sif([partition(b"x", offset=1 << 40)]),
    "object of negative size": sif([partition(b"x", size=-1)]),
    "object of a size that wraps": sif([partition(b"x", size=(1 << 63) - 1, padded=(1 << 63) - 1)]),
    "object that is longer": sif([partition(b"x", size=2)]),
    "object longer than with padding": sif([partition(b"xy", padded=1)]),
    "object without a number": sif([partition(b"x", number=0)]),
    "two of one number": sif([partition(b"x"), Object(ENVIRONMENT, b"y", number=1)]),
    "two that overlap": sif(
        [ROOT, Object(ENVIRONMENT, b"y" * 60), Object(JSON, b"z" * 9, offset=36863 + 20)]
    ),
    "two of one place": sif([ROOT, Object(ENVIRONMENT, b"y", offset=32768 + 4096)]),
    "two primary partitions": sif([ROOT, partition(b"x")]),
    "architectures differ": sif([partition(b"x", arch="arm64")]),
    "architecture of a partition": sif([Object(PARTITION, b"x", extra=b"\1\0\0\0\2\0\0\0zz")]),
    "file system": sif([partition(b"x", file_system=9)]),
    "use": sif([partition(b"x", use=0)]),
    "name with an escape": sif([Object(SIGNATURE, name=b"\x1b[0m")]),
    "name with something behind": sif([Object(SIGNATURE, name=b"a\0b")]),
    "name with a new line": sif([Object(SIGNATURE, name=b"a\nb")]),
    "name with a bidirectional mark": sif([Object(SIGNATURE, name="a\u202eb".encode())]),
    "name that is not UTF-8": sif([Object(SIGNATURE, name=b"\xff")]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case: str) -> None:
    with pytest.raises(ImageInvalid) as caught:
        parse(BAD[case])
    assert caught.value.message.isprintable()


def test_the_table_is_limited() -> None:
    assert parse(sif([], total=64), Limits(descriptors=64)).objects == ()
    with pytest.raises(ImageLimitExceeded, match="limit descriptors 63"):
        parse(sif([], total=64), Limits(descriptors=63))


def test_without_a_primary_partition_there_is_no_root() -> None:
    assert parse(sif([Object(SIGNATURE)])).primary is None
    assert parse(sif([partition(b"x", use=3)])).primary is None


SMALL = sif([ROOT, Object(SIGNATURE, b"s", b"name")], total=3)
POSITIONS: Any = st.integers(0, HEADER - 1) | st.integers(TABLE, TABLE + 3 * DESCRIPTOR - 1)


@given(POSITIONS, st.integers(1, 255))
def test_a_changed_byte_is_read_or_refused(at: int, change: int) -> None:
    bent = bytearray(SMALL)
    bent[at] ^= change
    try:
        found = parse(bytes(bent))
    except HpcpodError as error:
        assert error.message.isprintable()
    else:
        for each in found.objects:
            assert 0 <= each.offset <= each.offset + each.size <= len(bent)
