# SPDX-License-Identifier: Apache-2.0
"""JSON documents, tar archives and zstd frames: any bytes are read or refused, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, ImageInvalid
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.manifest import Compression, parse_config, parse_index, parse_manifest
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.images.unpacking.decompress import decompress
from hpcpod.images.unpacking.names import normal_name
from hpcpod.images.unpacking.tarheader import parse_header, parse_number, parse_pax, parse_time, pax_time
from hpcpod.images.unpacking.tarstream import ByteStream, Entry, TarReader
from hpcpod.images.unpacking.zstdframes import FrameWalker
from tests.testbed.layouts import (
    END,
    MANIFEST,
    base256,
    directory,
    file,
    gz,
    header,
    pax,
    pax_record,
    symlink,
    zst,
)

ARCHIVE = directory(b"d") + file(b"d/f", b"x" * 700) + pax({b"path": b"p"}) + symlink(b"s", b"d") + END


def entries(data: bytes, step: int = 1 << 20) -> list[Entry]:
    chunks = (data[at : at + step] for at in range(0, len(data), step))
    return list(TarReader(ByteStream(chunks), DEFAULT_LIMITS))


# --------------------------------------------------------------------------- JSON


@given(st.dictionaries(st.text(max_size=5), st.integers(-(10**18), 10**18) | st.text(max_size=5), max_size=5))
def test_json_is_read_as_python_reads_it(document: dict[str, object]) -> None:
    raw = json.dumps(document).encode()
    assert parse_object(raw, "x", DEFAULT_LIMITS) == document
    if len({key.casefold() for key in document}) == len(document):
        Fields(document, "x")
    else:
        with pytest.raises(ImageInvalid, match="differ in capitals alone"):
            Fields(document, "x")


MAPS: dict[str, object] = {
    "Labels": {"Name": "1", "name": "2"},
    "Volumes": {"/Data": {}, "/data": {}},
    "ExposedPorts": {"80/TCP": {}, "80/tcp": {}},
}
CONFIG: dict[str, object] = {
    "os": "linux",
    "architecture": "amd64",
    "rootfs": {"type": "layers", "diff_ids": []},
}
DESCRIPTOR: dict[str, object] = {"mediaType": MANIFEST, "digest": f"sha256:{'0' * 64}", "size": 1}


def test_maps_may_have_keys_that_differ_in_capitals() -> None:
    config = parse_config(json.dumps(CONFIG | {"config": MAPS}).encode(), "x", DEFAULT_LIMITS).config
    assert config.labels == (("Name", "1"), ("name", "2"))
    assert config.volumes == ("/Data", "/data")
    annotated = DESCRIPTOR | {"annotations": {"A": "1", "a": "2"}}
    index = {"schemaVersion": 2, "manifests": [annotated], "annotations": {"A": "1", "a": "2"}}
    assert len(parse_index(json.dumps(index).encode(), "x", None, DEFAULT_LIMITS)) == 1


@pytest.mark.parametrize("name", [*MAPS, "annotations"])
def test_no_map_may_have_a_key_twice(name: str) -> None:
    bad = b'{"config": {"%s": {"a": "1", "a": "2"}}}' % name.encode()
    with pytest.raises(ImageInvalid, match="occurs twice"):
        parse_object(bad, "x", DEFAULT_LIMITS)


PLATFORM: dict[str, object] = {"os": "linux", "OS": "linux", "architecture": "amd64"}
FOLDED: dict[str, dict[str, object]] = {
    "index": {"schemaVersion": 2, "manifests": [], "Manifests": []},
    "descriptor": {"schemaVersion": 2, "manifests": [DESCRIPTOR | {"Size": 1}]},
    "platform": {"schemaVersion": 2, "manifests": [DESCRIPTOR | {"platform": PLATFORM}]},
    "config": CONFIG | {"OS": "linux"},
    "rootfs": CONFIG | {"rootfs": {"type": "layers", "diff_ids": [], "DIFF_IDS": []}},
    "config's config": CONFIG | {"config": {"Cmd": ["a"], "cmd": ["b"]}},
}


@pytest.mark.parametrize("case", FOLDED)
def test_fields_may_not_differ_in_capitals(case: str) -> None:
    raw = json.dumps(FOLDED[case]).encode()
    with pytest.raises(ImageInvalid, match="differ in capitals alone"):
        if "schemaVersion" in FOLDED[case]:
            parse_index(raw, "x", None, DEFAULT_LIMITS)
        else:
            parse_config(raw, "x", DEFAULT_LIMITS)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_traceback(raw: bytes) -> None:
    for parse in (
        lambda: parse_index(raw, "x", None, DEFAULT_LIMITS),
        lambda: parse_manifest(raw, "x", MANIFEST, DEFAULT_LIMITS),
        lambda: parse_config(raw, "x", DEFAULT_LIMITS),
    ):
        with pytest.raises(HpcpodError):
            parse()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "schemaVersion",
    "mediaType",
    "config",
    "layers",
    "manifests",
    "os",
    "architecture",
    "rootfs",
    "size",
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_types_of_fields_are_no_traceback(document: dict[str, object]) -> None:
    raw = json.dumps({"schemaVersion": 2} | document).encode()
    for parse in (
        lambda: parse_index(raw, "x", None, DEFAULT_LIMITS),
        lambda: parse_manifest(raw, "x", MANIFEST, DEFAULT_LIMITS),
        lambda: parse_config(raw, "x", DEFAULT_LIMITS),
    ):
        try:
            parse()
        except HpcpodError as error:
            assert error.message.isprintable()


# --------------------------------------------------------------------------- tar


@given(st.integers(0, 8**11 - 1))
def test_numbers(value: int) -> None:
    assert parse_number(b"%011o\0" % value, "x") == value
    assert parse_number(b" %010o \0" % (value // 8), "x") == value // 8
    assert parse_number(base256(value, 12), "x") == value


@given(st.integers(-(1 << 62), 1 << 62))
def test_times_may_be_before_1970(value: int) -> None:
    assert parse_time(base256(value, 12)) == value


@pytest.mark.parametrize(
    "field", [b"1_0\0", b"+10\0", b"-10\0", b"0o7\0", b"0x7\0", b"8\0\0\0", b"1\0001\0", b"\xff" * 12]
)
def test_not_numbers(field: bytes) -> None:
    with pytest.raises(ImageInvalid):
        parse_number(field, "x")


@given(st.binary(min_size=512, max_size=512))
def test_any_block_is_a_header_or_refused(block: bytes) -> None:
    with pytest.raises(ImageInvalid):
        parse_header(block)


@given(st.integers(0, 511), st.integers(1, 255))
def test_one_changed_byte_is_noticed(at: int, change: int) -> None:
    block = bytearray(header(b"name", size=1))
    block[at] ^= change
    try:
        # The checksum field may spell the same number differently.
        assert 148 <= at < 156
        parse_header(bytes(block))
    except (ImageInvalid, AssertionError):
        with pytest.raises(ImageInvalid):
            parse_header(bytes(block))


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=9).filter(lambda key: b"=" not in key), st.binary(max_size=120)
    )
)
def test_pax_records(records: dict[bytes, bytes]) -> None:
    data = b"".join(pax_record(key, value) for key, value in records.items())
    assert parse_pax(data, DEFAULT_LIMITS) == records


@given(st.binary(max_size=60))
def test_any_pax_data_is_no_traceback(data: bytes) -> None:
    with suppress(HpcpodError):
        parse_pax(data, DEFAULT_LIMITS)


def test_pax_times() -> None:
    assert pax_time(b"1.5") == 1_500_000_000
    assert pax_time(b"1.1234567899") == 1_123_456_789
    assert pax_time(b"-1.25") == -1_250_000_000
    assert pax_time(b"0") == 0


@given(st.integers(1, 1500))
def test_chunks_of_any_size_make_no_difference(step: int) -> None:
    assert entries(ARCHIVE, step) == entries(ARCHIVE)


@given(st.integers(0, len(ARCHIVE)), st.binary(min_size=1, max_size=4))
def test_damaged_archives_are_no_traceback(at: int, change: bytes) -> None:
    for damaged in (ARCHIVE[:at], ARCHIVE[:at] + change + ARCHIVE[at + len(change) :], ARCHIVE[at:]):
        try:
            entries(damaged)
        except HpcpodError as error:
            assert error.message.isprintable()


@given(st.binary(max_size=40))
def test_names(raw: bytes) -> None:
    try:
        name = normal_name(raw, DEFAULT_LIMITS)
    except HpcpodError as error:
        assert error.message.isprintable()
        return
    assert not {b"", b".", b".."} & set(name.split(b"/")) or name == b""
    assert b"\0" not in name
    assert name == b"" or normal_name(name, DEFAULT_LIMITS) == name


# --------------------------------------------------------------------------- compression


def pieces(data: bytes, step: int) -> Iterator[bytes]:
    return (data[at : at + step] for at in range(0, len(data), step))


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(1, 700))
def test_streams_in_any_pieces(parts: list[bytes], step: int) -> None:
    for compression, pack in ((Compression.GZIP, gz), (Compression.ZSTD, zst)):
        packed = b"".join(pack(part) for part in parts)
        plain = b"".join(decompress(compression, pieces(packed, step), DEFAULT_LIMITS))
        assert plain == b"".join(parts)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 4000))
def test_cut_streams_are_refused(data: bytes, cut: int) -> None:
    for compression, pack in ((Compression.GZIP, gz), (Compression.ZSTD, zst)):
        packed = pack(data)
        with pytest.raises(ImageInvalid):
            list(decompress(compression, pieces(packed[: -min(cut, len(packed))], 512), DEFAULT_LIMITS))


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_are_no_stream(data: bytes) -> None:
    for compression in (Compression.GZIP, Compression.ZSTD):
        with suppress(HpcpodError):
            list(decompress(compression, iter([data]), DEFAULT_LIMITS))


@pytest.mark.parametrize("level", [1, 19])
@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("content_size", [False, True])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 300, 70_000, 400_000])
def test_frame_walker_agrees_with_the_library(
    level: int, checksum: bool, content_size: bool, size: int
) -> None:
    data = (b"abcdefgh" * 7 + bytes(range(256))) * (size // 256 + 1)
    packed = zstandard.ZstdCompressor(
        level, write_checksum=checksum, write_content_size=content_size
    ).compress(data[:size])
    for step in (1, 7, len(packed)):
        walker = FrameWalker(DEFAULT_LIMITS)
        for piece in pieces(packed * 2, step):
            walker.feed(piece)
        walker.finish()
    walker = FrameWalker(Limits(empty_frames=0))
    with pytest.raises(ImageInvalid):
        walker.feed(packed[:-1])
        walker.finish()
