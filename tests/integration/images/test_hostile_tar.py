# SPDX-License-Identifier: Apache-2.0
"""Archives that readers disagree about, and layers that are not what they claim to be."""

from __future__ import annotations

import struct

import pytest
import zstandard

from hpcpod.frozen import replace
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from tests.testbed.layouts import (
    BLOCK,
    END,
    GNU,
    Image,
    Layer,
    base256,
    directory,
    file,
    gz,
    hardlink,
    header,
    image,
    long_name,
    pax,
    pax_record,
    symlink,
    zst,
)
from tests.testbed.places import Place

GOOD = file(b"good", b"1")

BROKEN = {
    "negative size": header(b"x", size=base256(-1, 12)),
    "negative size, octal": header(b"x", size=b"-0000000001\0"),
    "size with an underscore": header(b"x", size=b"00000001_0\0\0"),
    "size with a sign": header(b"x", size=b"+0000000010\0"),
    "size that is decimal": header(b"x", size=b"00000000009\0"),
    "size with rubbish": header(b"x", size=b"0000001\x000x\0\0"),
    "huge size": header(b"x", size=b"\x80" + b"\xff" * 11),
    "mode": header(b"x", mode=b"0o644\0\0\0"),
    "mtime": header(b"x", mtime=base256(1 << 62, 12)),
    "mtime long before 1970": header(b"x", mtime=base256(-(1 << 62), 12)),
    "mtime with a sign": header(b"x", mtime=b"-0000000001\0"),
    "checksum": header(b"x", checksum=b"0000000\0"),
    "checksum of nothing": header(b"x", checksum=b"        "),
    "magic": header(b"x", magic=b"ustarrrr"),
    "star's format": header(b"x", pad=b"\0" * 8 + b"tar\0"),
    "unknown type": header(b"x", b"V"),
    "sparse, GNU": header(b"x", b"S", magic=GNU),
    "sparse, pax": pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}) + GOOD,
    "directory with data": directory(b"x", size=512) + bytes(BLOCK),
    "symlink with data": symlink(b"x", b"y", size=512) + bytes(BLOCK),
    "hard link with data": GOOD + hardlink(b"x", b"good", size=512) + bytes(BLOCK),
    "fifo with data": header(b"x", b"6", size=512) + bytes(BLOCK),
    "file with a slash": file(b"x/"),
    "V7 directory with data": file(b"x/", b"1", kind=b"\0"),
    "empty name": file(b""),
    "empty symlink": symlink(b"x", b""),
    "symlink of 4096 bytes": long_name(b"y" * 4096, b"K") + symlink(b"x", b"y"),
    "NUL in a name": pax({b"path": b"a\0b"}) + GOOD,
    "NUL in a target": pax({b"linkpath": b"a\0b"}) + symlink(b"x", b"y"),
    "two pax headers": pax({b"path": b"a"}) + pax({b"path": b"b"}) + GOOD,
    "two long names": long_name(b"a") + long_name(b"b") + GOOD,
    "two spellings": long_name(b"a") + pax({b"path": b"b"}) + GOOD,
    "two sizes": pax({b"size": b"1024"}) + file(b"x", bytes(512)),
    "size only in pax": pax({b"size": b"512"}) + file(b"x", bytes(512), size=0),
    "pax size with an underscore": pax({b"size": b"1_0"}) + GOOD,
    "pax size, many digits": pax({b"size": b"9" * 5000}) + GOOD,
    "pax mtime": pax({b"mtime": b"1e9"}) + GOOD,
    "pax mtime out of range": pax({b"mtime": b"9" * 12}) + GOOD,
    "pax key twice": pax(pax_record(b"path", b"a") + pax_record(b"path", b"b")) + GOOD,
    "pax length too long": pax(b"99 path=a\n") + GOOD,
    "pax length too short": pax(b"5 path=a\n") + GOOD,
    "pax length of zero": pax(b"0 path=a\n") + GOOD,
    "pax without a key": pax(b"5 =a\n") + GOOD,
    "pax without equals": pax(b"7 path\n") + GOOD,
    "pax without newline": pax(b"9 path=a ") + GOOD,
    "global path": pax({b"path": b"a"}, b"g") + GOOD,
    "global size": pax({b"size": b"1"}, b"g") + GOOD,
    "extension at the end": GOOD + pax({b"path": b"a"}),
    "not a tar": b"#!/bin/sh\n".ljust(BLOCK, b"#"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives(plain_place: Place, case: str) -> None:
    outcome = plain_place.refused(plain_place.layout(image(GOOD + BROKEN[case])))
    assert outcome.slug in ("image-invalid", "image-limit")


ENDS = {
    "cut in a header": GOOD + header(b"x")[:100],
    "cut in data": GOOD + file(b"x", bytes(2000))[:1500],
    "cut in an extension": GOOD + pax({b"path": b"a" * 2000})[:1000],
    "data behind the end": GOOD + END + GOOD,
    "data behind one zero block": GOOD + bytes(BLOCK) + GOOD,
    "a byte behind the end": GOOD + END + bytes(10239) + b"x",
    "half a block behind the end": GOOD + END + b"\0" * 100 + b"x",
}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("case", ENDS)
def test_bad_ends(plain_place: Place, case: str, compression: str) -> None:
    layer = Layer(ENDS[case], compression, end=b"")
    assert plain_place.refused(plain_place.layout(Image([layer]))).slug == "image-invalid"


GOOD_ENDS = {
    "two blocks": END,
    "one block": bytes(BLOCK),
    "nothing": b"",
    "a record": bytes(10240),
    "ragged": bytes(1500),
}


def test_last_padding_may_be_missing(plain_place: Place) -> None:
    """As umoci-insert(1) writes layers."""
    layers = [Layer(GOOD[:-511], end=b""), Layer(file(b"more", b"2")[:-1], end=b"")]
    assert set(plain_place.tree(plain_place.layout(Image(layers)))) == {"good", "more"}


@pytest.mark.parametrize("case", GOOD_ENDS)
def test_good_ends(plain_place: Place, case: str) -> None:
    assert "good" in plain_place.tree(plain_place.layout(Image([Layer(GOOD, end=GOOD_ENDS[case])])))


def test_legal_oddities(plain_place: Place) -> None:
    tar = (
        pax({b"comment": b"0123456789abcdef"}, b"g")
        + pax({b"mtime": b"1234567890.987654321", b"path": b"p"})
        + file(b"x", b"1")
        + file(b"spaces", b"2", size=b"         1 \0", mode=b"   644 \0")
        + file(b"big number", b"3", size=base256(1, 12))
        + file(b"contiguous", b"4", kind=b"7")
        + file(b"old", b"5", magic=bytes(8), kind=b"\0")
        + pax({b"path": b"same"})
        + long_name(b"same")
        + file(b"x", b"6")
    )
    tree = plain_place.tree(plain_place.layout(image(tar)))
    assert {name: entry[1] for name, entry in tree.items()} == {
        "p": b"1",
        "spaces": b"2",
        "big number": b"3",
        "contiguous": b"4",
        "old": b"5",
        "same": b"6",
    }
    assert (plain_place.target / "p").stat().st_mtime_ns == 1234567890_987654321


def test_times_before_1970(plain_place: Place) -> None:
    tar = (
        file(b"gnu", mtime=base256(-86400, 12))
        + directory(b"d", mtime=base256(-86400, 12))
        + pax({b"mtime": b"-86400"})
        + file(b"pax")
    )
    plain_place.tree(plain_place.layout(image(tar)))
    times = {path.name: path.stat().st_mtime for path in plain_place.target.iterdir()}
    assert times == {"gnu": -86400, "d": -86400, "pax": -86400}


# --------------------------------------------------------------------------- compression

PLAIN = GOOD + END
HALF = len(PLAIN) // 2
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"extra"
ZSTD = zst(PLAIN)


def wide(window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(PLAIN) + compressor.flush()


COMPRESSED_BAD = {
    "gzip: is zstd": ("gzip", ZSTD),
    "gzip: is plain": ("gzip", PLAIN),
    "gzip: empty": ("gzip", b""),
    "gzip: cut trailer": ("gzip", gz(PLAIN)[:-1]),
    "gzip: cut": ("gzip", gz(PLAIN)[:30]),
    "gzip: wrong checksum": ("gzip", gz(PLAIN)[:-8] + b"\1\2\3\4" + gz(PLAIN)[-4:]),
    "gzip: wrong length": ("gzip", gz(PLAIN)[:-4] + b"\1\2\3\4"),
    "gzip: rubbish behind": ("gzip", gz(PLAIN) + b"rubbish"),
    "gzip: zeros behind": ("gzip", gz(PLAIN) + bytes(512)),
    "gzip: half a member behind": ("gzip", gz(PLAIN) + gz(b"")[:5]),
    "gzip: zlib": ("gzip", b"\x78\x9c" + gz(PLAIN)[10:]),
    "gzip: reserved flag": ("gzip", gz(PLAIN)[:3] + b"\x20" + gz(PLAIN)[4:]),
    "zstd: is gzip": ("zstd", gz(PLAIN)),
    "zstd: is plain": ("zstd", PLAIN),
    "zstd: cut checksum": ("zstd", ZSTD[:-1]),
    "zstd: cut": ("zstd", ZSTD[:20]),
    "zstd: wrong checksum": ("zstd", ZSTD[:-4] + b"\1\2\3\4"),
    "zstd: rubbish behind": ("zstd", ZSTD + b"rubbish"),
    "zstd: gzip behind": ("zstd", ZSTD + gz(b"")),
    "zstd: cut skippable frame": ("zstd", ZSTD + SKIPPABLE[:-1]),
    "zstd: window": ("zstd", wide(28)),
    "none: is gzip": ("none", gz(PLAIN)),
}


@pytest.mark.parametrize("case", COMPRESSED_BAD)
def test_bad_compression(plain_place: Place, case: str) -> None:
    compression, blob = COMPRESSED_BAD[case]
    outcome = plain_place.refused(plain_place.layout(Image([Layer(GOOD, compression, blob=blob)])))
    assert outcome.slug == ("image-limit" if "window" in case else "image-invalid")


COMPRESSED_GOOD = {
    "gzip: two members": ("gzip", gz(PLAIN[:HALF]) + gz(PLAIN[HALF:])),
    "gzip: many members": ("gzip", b"".join(gz(PLAIN[at : at + 1]) for at in range(len(PLAIN)))),
    "gzip: empty members": ("gzip", gz(b"") + gz(PLAIN) + gz(b"")),
    "zstd: two frames": ("zstd", zst(PLAIN[:HALF]) + zst(PLAIN[HALF:])),
    "zstd: skippable frames": (
        "zstd",
        SKIPPABLE + zst(PLAIN[:HALF]) + SKIPPABLE + zst(PLAIN[HALF:]) + SKIPPABLE,
    ),
    "zstd: window": ("zstd", wide(27)),
}


@pytest.mark.parametrize("case", COMPRESSED_GOOD)
def test_good_compression(plain_place: Place, case: str) -> None:
    compression, blob = COMPRESSED_GOOD[case]
    assert "good" in plain_place.tree(plain_place.layout(Image([Layer(GOOD, compression, blob=blob)])))


# --------------------------------------------------------------------------- limits

DEEP = b"/".join([b"d"] * 10)
TEN = b"".join(file(b"%d" % n) for n in range(10))

LIMITS: dict[str, tuple[bytes, Limits, Limits]] = {
    "entries": (TEN, Limits(entries=10), Limits(entries=9)),
    "directories": (
        directory(b"a") + file(b"b/c/x") + directory(b"a"),
        Limits(directories=3),
        Limits(directories=2),
    ),
    "file_bytes": (file(b"x", bytes(1000)), Limits(file_bytes=1000), Limits(file_bytes=999)),
    "bytes_out": (TEN, Limits(bytes_out=12 * BLOCK), Limits(bytes_out=12 * BLOCK - 1)),
    "path_depth": (file(DEEP), Limits(path_depth=10), Limits(path_depth=9)),
    "path_bytes": (file(DEEP), Limits(path_bytes=19), Limits(path_bytes=18)),
    "name_bytes": (file(b"x" * 20), Limits(name_bytes=20), Limits(name_bytes=19)),
    "header_bytes": (long_name(b"x" * 99) + GOOD, Limits(header_bytes=100), Limits(header_bytes=99)),
    "pax_records": (
        pax({b"a": b"", b"b": b""}) + GOOD,
        Limits(pax_records=2),
        Limits(pax_records=1),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(plain_place: Place, name: str) -> None:
    tar, enough, short = LIMITS[name]
    reference = plain_place.layout(image(tar))
    outcome = plain_place.refused(reference, short)
    assert outcome.slug == "image-limit"
    assert name in outcome.message
    plain_place.tree(reference, enough)


def test_depth_is_bounded_through_symlinks(plain_place: Place) -> None:
    """Each step goes down by nine and leaves a link to where it came."""
    step = b"/".join([b"d"] * 9)
    tar = b"".join(
        directory(b"l%d/" % n + step) + symlink(b"l%d" % (n + 1), b"l%d/" % n + step) for n in range(1, 100)
    )
    tar = directory(b"l1") + tar
    assert plain_place.refused(plain_place.layout(image(tar))).slug in ("image-limit", "image-invalid")


ZEROS = 200 << 20


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bombs_end_at_the_limit(plain_place: Place, compression: str) -> None:
    limits = replace(DEFAULT_LIMITS, bytes_out=64 << 20)
    tar = header(b"bomb", size=ZEROS) + bytes(ZEROS)
    outcome = plain_place.refused(plain_place.layout(Image([Layer(tar, compression)])), limits)
    assert outcome.slug == "image-limit"
    assert outcome.peak < 150 << 20
    assert outcome.seconds < 10


def test_bomb_behind_the_end(plain_place: Place) -> None:
    limits = replace(DEFAULT_LIMITS, bytes_out=64 << 20)
    outcome = plain_place.refused(plain_place.layout(Image([Layer(GOOD, end=bytes(ZEROS))])), limits)
    assert outcome.slug == "image-limit"


def test_empty_members_are_bounded(plain_place: Place) -> None:
    blob = gz(PLAIN) + gz(b"") * 5000
    outcome = plain_place.refused(plain_place.layout(Image([Layer(GOOD, blob=blob)])))
    assert outcome.slug == "image-limit"


def test_empty_frames_are_bounded(plain_place: Place) -> None:
    blob = ZSTD + SKIPPABLE * 5000
    outcome = plain_place.refused(plain_place.layout(Image([Layer(GOOD, "zstd", blob=blob)])))
    assert outcome.slug == "image-limit"


def test_memory_does_not_grow_with_the_image(plain_place: Place) -> None:
    """Small files, one large one, a lower and an upper layer."""
    many = b"".join(file(b"d%d/f%d" % (n % 500, n), b"x" * 100) for n in range(3000))
    large = header(b"large", size=ZEROS) + bytes(ZEROS)
    outcome = plain_place.unpack(plain_place.layout(image(many + large, many)))
    assert outcome.slug is None
    assert outcome.peak < 150 << 20
