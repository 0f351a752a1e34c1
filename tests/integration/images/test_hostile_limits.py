# SPDX-License-Identifier: Apache-2.0
"""Each limit of hpcpod.toml: just enough is accepted, one less is refused with the limit's name and value."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from hpcpod.images.limits import Limits
from tests.testbed.layouts import (
    BLOCK,
    INDEX,
    MANIFEST,
    Image,
    Layer,
    as_json,
    descriptor,
    digest,
    directory,
    file,
    gz,
    header,
    image,
    long_name,
    pax,
    symlink,
    write_archive,
    write_files,
    zst,
)
from tests.testbed.unpacking import Unpacking

TEN = b"".join(file(b"%d" % number) for number in range(10))
DEEP = b"/".join([b"d"] * 10)
GOOD = image(file(b"a"))
Maker = Callable[[Unpacking], str]


def tar(entries: bytes, *more: bytes) -> Maker:
    return lambda place: place.layout(image(entries, *more))


def packed(compression: str, blob: Callable[[bytes], bytes]) -> Maker:
    layer = Layer(file(b"a"), compression)
    layer.blob = blob(layer.plain)
    return lambda place: place.layout(Image([layer]))


def configured(bend: Callable[[dict[str, Any]], Any]) -> Maker:
    return lambda place: place.layout(Image(GOOD.layers, bend_config=bend))


def padded_json(size: int) -> Maker:
    """A configuration of exactly so many bytes; index and manifest are smaller."""
    return configured(lambda config: as_json(config).ljust(size))


def nested(depth: int, width: int) -> Maker:
    """Indexes in indexes, each with `width` entries of which the last leads on."""

    def make(place: Unpacking) -> str:
        manifest, blobs = GOOD.blobs()
        entry = descriptor(manifest, MANIFEST, platform={"os": "linux", "architecture": "amd64"})
        other = descriptor(b"x", MANIFEST, platform={"os": "linux", "architecture": "s390x"})
        for _ in range(depth):
            raw = as_json({"schemaVersion": 2, "manifests": [other] * (width - 1) + [entry]})
            blobs[digest(raw)] = raw
            entry = descriptor(raw, INDEX)
        path = place.inputs / f"nested{len(list(place.inputs.iterdir()))}"
        write_files(path, {"schemaVersion": 2, "manifests": [entry]}, blobs)
        return f"oci:{path}"

    return make


def archived(members: int) -> Maker:
    def make(place: Unpacking) -> str:
        layout = Path(place.layout(GOOD).partition(":")[2])
        for number in range(members - 5):
            (layout / f"more{number}").write_bytes(b"")
        return f"oci-archive:{write_archive(place.inputs / 'image.tar', layout)}"

    return make


_LONG = b"/".join([b"x" * 200] * 19)


def spilled() -> tuple[bytes, int]:
    """Directories whose names are more than is held in memory, and the bytes that they take in a file."""
    names = [b"", *(b"/".join([b"x" * 200] * depth) for depth in range(1, 20))]
    held = sum(len(name) + 250 for name in names)
    while held <= 8 << 20:
        names.append(_LONG + b"/%d" % len(names))
        held += len(names[-1]) + 250
    entries = [long_name(name) + directory(b"x") for name in names[20:]]
    return b"".join(entries), sum(len(name) + 16 for name in names)


LIMITS: dict[str, tuple[Maker, int]] = {
    "bytes_out": (tar(TEN), 12 * BLOCK),
    "entries": (tar(TEN[: 5 * BLOCK], TEN[5 * BLOCK :]), 10),
    "directories": (tar(directory(b"a") + file(b"b/c/x") + directory(b"a")), 3),
    "names_bytes": (tar(TEN, directory(b"12345") + file(b"abc")), 2 * 16),
    "names_disk": (tar(spilled()[0]), spilled()[1]),
    "file_bytes": (tar(file(b"x", bytes(1000))), 1000),
    "path_bytes": (tar(file(DEEP)), 19),
    "path_depth": (tar(file(DEEP)), 10),
    "name_bytes": (tar(file(b"x" * 20)), 20),
    "link_bytes": (tar(symlink(b"x", b"y" * 20)), 20),
    "header_bytes": (tar(long_name(b"x" * 99) + file(b"x")), 100),
    "pax_records": (tar(pax({b"a": b"", b"b": b""}) + file(b"x")), 2),
    "json_bytes": (padded_json(5000), 5000),
    "json_depth": (configured(lambda c: c | {"x": [[[[[[[[[]]]]]]]]]}), 10),
    "json_digits": (configured(lambda c: c | {"x": 10**11}), 12),
    "layers": (tar(file(b"a"), file(b"b"), file(b"c")), 3),
    "descriptors": (nested(2, 4), 9),
    "documents": (nested(3, 1), 3),
    "index_depth": (nested(3, 1), 3),
    "zstd_window": (packed("zstd", zst), 3 * BLOCK),
    "empty_frames": (packed("gzip", lambda plain: gz(plain) + gz(b"") * 7), 7),
    "archive_members": (archived(9), 9),
    "config_words": (configured(lambda c: c | {"config": {"Env": ["A=1", "B=2"], "Labels": {"a": "b"}}}), 3),
    "config_bytes": (configured(lambda c: c | {"config": {"Cmd": ["12345"], "Labels": {"a": "b"}}}), 7),
}


def test_every_limit_is_here() -> None:
    assert set(LIMITS) == set(Limits.__match_args__)


@pytest.mark.parametrize("name", LIMITS)
def test_limits(unpacking: Unpacking, name: str) -> None:
    make, enough = LIMITS[name]
    reference = make(unpacking)
    ended = unpacking.refused(reference, env=unpacking.limited(**{name: enough - 1}))
    assert ended.slug == "image-limit", ended.said
    assert f"{name} {enough - 1}" in ended.said
    assert "hpcpod.toml" in ended.said
    unpacking.tree(reference, env=unpacking.limited(**{name: enough}))


def test_bytes_on_the_command_line(unpacking: Unpacking) -> None:
    reference = unpacking.layout(image(TEN))
    ended = unpacking.refused(reference, options=["--max-bytes", str(12 * BLOCK - 1)])
    assert "--max-bytes" in ended.said
    unpacking.tree(reference, options=["--max-bytes", str(12 * BLOCK)])


# --------------------------------------------------------------------------- bombs against the defaults

GIB = 1 << 30


def bomb(compression: str) -> Layer:
    """A layer of 1 GiB of zeros in some kilobytes or a megabyte."""
    size = GIB
    head, zeros, end = header(b"bomb", size=size), bytes(64 << 20), bytes(2 * BLOCK)
    compressor = (
        zlib.compressobj(9, wbits=31) if compression == "gzip" else zstandard.ZstdCompressor().compressobj()
    )
    plain = hashlib.sha256()
    parts = []
    for piece in (head, *[zeros] * (size // len(zeros)), end):
        plain.update(piece)
        parts.append(compressor.compress(piece))
    parts.append(compressor.flush())
    return Layer(b"", compression, end=b"", blob=b"".join(parts))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_decompression_bomb(unpacking: Unpacking, compression: str) -> None:
    ended = unpacking.refused(
        unpacking.layout(Image([bomb(compression)])), options=["--max-bytes", "16M"], before=FILE_SIZE
    )
    assert ended.slug == "image-limit"


FILE_SIZE = ("prlimit", f"--fsize={32 << 20}")
"""A file of the tree may not grow beyond this: what is refused was not written first."""


def test_bomb_of_apparent_sizes(unpacking: Unpacking) -> None:
    """Headers that promise terabytes cost nothing to refuse, and no space is reserved for them."""
    reference = unpacking.layout(
        image(file(b"a") + header(b"x", size=b"\x80" + (1 << 50).to_bytes(11, "big")))
    )
    assert unpacking.refused(reference, before=FILE_SIZE).slug == "image-limit"


def _fifos(count: int) -> bytes:
    return b"".join(long_name(_LONG + b"/%d" % n) + header(b"x", b"6") for n in range(count))


def _directories(count: int) -> bytes:
    return b"".join(long_name(_LONG + b"/%d" % n) + directory(b"x") for n in range(count))


def _spellings(count: int) -> bytes:
    """Each entry spells the same directory its own way."""
    ways = (
        b"".join(b"//" if n >> bit & 1 else b"/." for bit in range(17)) + b"/." * 1880 for n in range(count)
    )
    return directory(b"d") + b"".join(
        long_name(b"d%s/%d" % (way, n)) + file(b"x") for n, way in enumerate(ways)
    )


@pytest.mark.parametrize("make", [_fifos, _directories, _spellings])
def test_many_names_take_bounded_memory(unpacking: Unpacking, make: Callable[[int], bytes]) -> None:
    """Limits as they are; names of 20,000 entries have 75 MB together, in an archive of half a megabyte."""
    least = unpacking.run(unpacking.layout(image(file(b"a"))))
    unpacking.account.run(["rm", "-r", unpacking.target], check=True)
    layers = [file(b"a"), make(20_000)] if make is _fifos else [make(20_000)]
    ended = unpacking.run(unpacking.layout(Image([Layer(tar, "zstd") for tar in layers])))
    assert ended.status == 0, ended.said
    assert ended.peak < least.peak + (50 << 20), (least.peak, ended.peak)
    unpacking.account.run(["rm", "-r", unpacking.target], check=True)


def test_marks_of_names_are_bounded(unpacking: Unpacking) -> None:
    reference = unpacking.layout(image(file(b"a"), _fifos(3000)))
    ended = unpacking.refused(reference, env=unpacking.limited(names_bytes=30_000))
    assert "names_bytes" in ended.said


@pytest.mark.parametrize("mark", [b"d/.wh..wh..opq", b".wh.d", b".wh..wh..opq"])
def test_repeated_whiteouts_end(unpacking: Unpacking, mark: bytes) -> None:
    """Each of them alone would look at all that its layer has made: 64 million looks."""
    count = 8000
    layer = b"".join(file(b"d/%d" % number) for number in range(count)) + file(mark) * count
    assert len(unpacking.tree(unpacking.layout(image(file(b"d/low"), layer)))) == count + 1


JSON_BOMBS = {
    "objects": b'{"a":0},',
    "empty objects": b"{},",
    "empty lists": b"[],",
    "lists in lists": b"[[[[]]]],",
    "texts": b'"\\u00ff",',
    "wide texts": '"\U0001f600",'.encode(),
    "numbers": b"1111111111,",
}


@pytest.mark.parametrize("case", JSON_BOMBS)
def test_json_takes_bounded_memory(unpacking: Unpacking, case: str) -> None:
    """As much as json_bytes permits, under a key that nobody reads."""
    item = JSON_BOMBS[case]
    many = b"[" + item * (((4 << 20) - 1000) // len(item)) + b"0]"
    make = configured(lambda config: as_json(config)[:-1] + b', "x": ' + many + b"}")
    unpacking.tree(make(unpacking))
