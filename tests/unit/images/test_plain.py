# SPDX-License-Identifier: Apache-2.0
"""The short way for plain entries makes what the long way makes, and refuses what it refuses."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path
from typing import Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError
from hpcpod.frozen import replace
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.unpacking.apply import Applier
from hpcpod.images.unpacking.tarstream import ByteStream, TarReader

Form = Literal[0, 1]
FORMS: tuple[Form, Form] = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)
LONG_WAY = replace(DEFAULT_LIMITS, path_depth=127)
"""Below what a header can name: PlainFiles leaves every entry to the long way."""
NAMES = ("a", "b", "c.d", ".e", ".wh.a", "", ".", "..", "x" * 90)


def _header(name: str, kind: bytes, size: int, form: Form, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode, info.mtime = kind, size, target, 0o4755, 1_600_000_000
    return info.tobuf(form)


def _entry(name: str, kind: bytes, data: bytes, form: Form, target: str = "") -> bytes:
    return _header(name, kind, len(data), form, target) + data + bytes(-len(data) % 512)


def _listing(root: Path) -> list[tuple[str, int, int, bytes]]:
    found = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        target = os.readlink(path).encode() if path.is_symlink() else data
        found.append((str(path.relative_to(root)), status.st_mode, status.st_mtime_ns, target))
    return found


def _applied(layers: list[bytes], long_way: bool, step: int) -> object:
    """What becomes of the layers: the error, or the tree and the counts."""
    with tempfile.TemporaryDirectory() as directory:
        root = os.open(directory, os.O_RDONLY)
        limits = LONG_WAY if long_way else DEFAULT_LIMITS
        applier = Applier(root, limits)
        try:
            for number, tar in enumerate(layers):
                pieces = (tar[at : at + step] for at in range(0, len(tar), step))
                applier.layer(TarReader(ByteStream(pieces), limits), lowest=not number)
            applier.finish()
        except (HpcpodError, OSError) as error:
            return type(error), str(error)
        finally:
            applier.close()
            os.close(root)
        # Implicit directories have the time of their making.
        now = 1_700_000_000 * 10**9
        tree = [(name, mode, min(time, now), data) for name, mode, time, data in _listing(Path(directory))]
        return tree, applier.entries, applier.skipped, applier.disk


_PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
_ENTRIES = st.builds(
    _entry,
    _PATHS.filter(lambda name: len(name) < 100),
    st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.DIRTYPE]),
    st.sampled_from([b"", b"x", b"y" * 600]),
    st.sampled_from(FORMS),
)
_LINKS = st.builds(
    lambda name, target: _entry(name, tarfile.SYMTYPE, b"", FORMS[0], target),
    st.sampled_from(["a", "b", "a/b"]),
    st.sampled_from(["b", "/a", "../a", "a/b"]),
)
_LAYERS = st.lists(
    st.lists(_ENTRIES | _LINKS, max_size=8).map(lambda parts: b"".join(parts) + bytes(1024)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(_LAYERS, st.sampled_from([512, 1000, 1 << 20]))
def test_both_ways_make_the_same_of_any_names(layers: list[bytes], step: int) -> None:
    assert _applied(layers, False, step) == _applied(layers, True, step)


_PLAIN = b"".join(
    (
        _entry("d", tarfile.DIRTYPE, b"", FORMS[0]),
        _entry("d/f", tarfile.REGTYPE, b"content", FORMS[0]),
        _entry("p" * 80 + "/" + "q" * 60, tarfile.REGTYPE, b"far", FORMS[0]),
        _entry("d/g", tarfile.REGTYPE, b"", FORMS[1]),
    )
)
_SUM = slice(148, 156)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, len(_PLAIN) - 1),
    st.sampled_from([0, 0x20, 0x2D, 0x2F, 0x30, 0x37, 0x38, 0x5F, 0x80, 0xFF]),
    st.booleans(),
)
@example(512 + 512 + 124, 0x80, True)
@example(156, 0x35, True)
def test_both_ways_make_the_same_of_any_header(at: int, value: int, sum_kept_right: bool) -> None:
    changed = bytearray(_PLAIN)
    changed[at] = value
    if sum_kept_right:
        start = at // 512 * 512
        block = changed[start : start + 512]
        block[_SUM] = b" " * 8
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    tar = bytes(changed) + bytes(1024)
    assert _applied([tar], False, 1 << 20) == _applied([tar], True, 1 << 20)


def test_the_short_way_is_taken() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = os.open(directory, os.O_RDONLY)
        applier = Applier(root, DEFAULT_LIMITS)
        applier.layer(TarReader(ByteStream(iter([_PLAIN + bytes(1024)])), DEFAULT_LIMITS), lowest=True)
        assert applier._plain.entries == 2  # not the first of a chunk, nor the one without a parent
        applier.close()
        os.close(root)
