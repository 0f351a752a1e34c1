# SPDX-License-Identifier: Apache-2.0
"""EROFS images that no tool writes; any bytes are read or refused, within bounds of time and memory."""

from __future__ import annotations

import os
import struct

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, ImageInvalid, ImageLimitExceeded, ImageUnsupported
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.erofs import Erofs
from hpcpod.images.sources.fstree import FsTree
from hpcpod.images.unpacking.tarstream import Entry, Kind
from tests.testbed.erofses import (
    BIG,
    BLOCK,
    CHUNKS,
    DEVICE,
    FIFO,
    FRAGMENT,
    FULL,
    INLINE,
    PLAIN,
    TIME,
    Node,
    directory,
    erofs,
    file,
    header,
    index,
    symlink,
)


def read(image: bytes, limits: Limits = DEFAULT_LIMITS) -> list[tuple[Entry, bytes]]:
    """All entries, and the data of files; spends as `image unpack` does, but no more than 1 MB."""
    spent = 0

    def spend(count: int) -> None:
        nonlocal spent
        spent += count
        if spent > 1 << 20:
            raise ImageLimitExceeded("1 MB")

    opened = Erofs(lambda at, count: image[at : at + count], len(image), limits)
    tree = FsTree(opened, limits, spend, lambda count: None)
    found = []
    out = os.memfd_create("data")
    try:
        for entry in tree:
            os.ftruncate(out, 0)
            os.lseek(out, 0, os.SEEK_SET)
            tree.copy_data(out)
            found.append((entry, os.pread(out, 1 << 21, 0)))
            if len(found) > 1000:
                raise ImageLimitExceeded("1000 entries")
    finally:
        os.close(out)
    return found


names = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {0, ord("/")} & {*name} and name not in (b".", b"..") and not name.startswith(b".wh.")
)
contents = st.one_of(
    st.binary(max_size=1500), st.integers(0, 3).map(lambda n: bytes(BLOCK * n) + b"x"), st.just(b"ab" * 900)
)
leaves = st.one_of(
    st.builds(file, contents, layout=st.sampled_from([PLAIN, CHUNKS, FULL])),
    st.builds(file, st.binary(max_size=400), layout=st.just(INLINE)),
    names.map(symlink),
)
trees = st.recursive(
    leaves, lambda inner: st.dictionaries(names, inner, max_size=4).map(directory), max_leaves=8
).filter(lambda node: bool(node.entries))
KINDS = {Kind.DIRECTORY: 0o040000, Kind.FILE: 0o100000, Kind.SYMLINK: 0o120000}


def flat(node: Node, above: bytes = b"") -> list[tuple[bytes, int, bytes]]:
    found = []
    for name, child in node.entries:
        found.append((above + name, child.kind, child.data))
        found += flat(child, above + name + b"/")
    return found


@given(trees)
def test_what_was_written_is_read(root: Node) -> None:
    (top, _), *found = read(erofs(root))
    assert (top.name, top.kind, top.mtime_ns) == (b".", Kind.DIRECTORY, TIME * 1_000_000_000)
    assert [(entry.name, KINDS[entry.kind], data or entry.link) for entry, data in found] == flat(root)


def test_many_entries_span_blocks() -> None:
    found = read(erofs(directory({b"n%03d" % number: file(b"%d" % number) for number in range(300)})))
    assert [data for _, data in found[1:]] == [b"%d" % number for number in range(300)]


def test_a_file_with_two_names_is_linked() -> None:
    shared = file(b"shared")
    found = read(erofs(directory({b"a": shared, b"b": shared})))
    assert [(entry.kind, entry.link) for entry, _ in found[1:]] == [(Kind.FILE, b""), (Kind.HARDLINK, b"a")]


def test_holes_stay_holes() -> None:
    image = erofs(directory({b"a": file(bytes(5 * BLOCK) + b"x", layout=CHUNKS)}))
    opened = Erofs(lambda at, count: image[at : at + count], len(image), DEFAULT_LIMITS)
    ((_, place),) = opened.entries(opened.root)
    assert list(opened.data(opened.inode(place))) == [*[BLOCK] * 5, b"x"]


TEXT = b"some text that is worth being compressed, " * 60
PACKED = lz4.block.compress(TEXT, store_size=False)


def big(data: bytes = PACKED, entries: tuple[tuple[int, int, int], ...] = (), **more: int) -> bytes:
    """A file of one extent over five clusters, in one block of compressed data."""
    inner = entries or ((1, 0, 4), (2, 0, 1), (2, 0, 2), (2, 0, 3), (2, 0, 4))
    node = file(
        data.rjust(-(-len(data) // BLOCK) * BLOCK, b"\0"),
        layout=FULL,
        index=index(*inner, **more),
        bend={"size": len(TEXT)},
    )
    return erofs(directory({b"a": node}))


def first_data_block() -> int:
    return next(block for block in range(3, 30) if PACKED in big()[block * BLOCK : (block + 1) * BLOCK])


def test_an_extent_over_several_clusters() -> None:
    at = first_data_block()
    rest = ((2, 0, 1), (2, 0, 2), (2, 0, 3), (2, 0, 4))
    assert read(big(entries=((1, 0, at), *rest)))[1][1] == TEXT


def test_an_end_in_another_file() -> None:
    ends = file(b"0123456789" * 100, layout=PLAIN)
    whole = struct.pack("<Q", 1 << 63 | 7)
    node = file(layout=FULL, index=whole, bend={"size": 600})
    assert read(erofs(directory({b"a": node}), packed=ends))[1][1] == (b"0123456789" * 100)[7:607]
    for bend in ({"size": 994}, {"size": 1 << 40}):
        node = file(layout=FULL, index=whole, bend=bend)
        with pytest.raises((ImageInvalid, ImageLimitExceeded)):
            read(erofs(directory({b"a": node}), packed=ends))
    itself = file(layout=FULL, index=whole, bend={"size": 600})
    with pytest.raises(ImageInvalid, match="in itself"):
        read(erofs(directory({b"a": file(layout=FULL, index=whole, bend={"size": 6})}), packed=itself))


SHARED = directory({b"x": file(b"a")})
REST = ((2, 0, 1), (2, 0, 2), (2, 0, 3), (2, 0, 4))
WRONG: dict[str, bytes] = {
    "nothing": b"",
    "zeros": bytes(9000),
    "no mark": erofs(directory(), magic=1),
    "cut": erofs(directory({b"a": file(b"x" * 3000, layout=PLAIN)}))[:-BLOCK],
    "more blocks": erofs(directory(), blocks=1 << 31),
    "no blocks": erofs(directory(), blocks=0),
    "tiny blocks": erofs(directory(), log=8),
    "huge blocks": erofs(directory(), log=63),
    "metadata elsewhere": erofs(directory(), meta=1 << 31),
    "root elsewhere": erofs(directory(), root=0xFFFF),
    "root a file": erofs(file(b"x")),
    "root a link": erofs(symlink(b"/")),
    "time": erofs(directory(), nanoseconds=1 << 31),
    "time of an inode": erofs(directory(bend={"mtime": 1 << 62})),
    "format": erofs(directory(bend={"format": 0x8001})),
    "layout": erofs(directory(bend={"format": 0xB})),
    "mode": erofs(directory(bend={"mode": 0})),
    "attributes": erofs(directory(bend={"attributes": 0xFFFF})),
    "size of a directory": erofs(directory(bend={"size": 1 << 62})),
    "directory shorter": erofs(directory(bend={"size": 11})),
    "directory of holes": erofs(directory(layout=PLAIN, bend={"start": 0xFFFFFFFF})),
    "name with a slash": erofs(directory([(b"a/b", file())])),
    "name upwards, twice": erofs(directory([(b"...", file()), (b"...", file())])),
    "names that descend": erofs(directory([(b"b", file()), (b"a", file())])),
    "one name twice": erofs(directory([(b"a", file()), (b"a", symlink(b"/"))])),
    "an empty name": erofs(directory([(b"", file())])),
    "a directory in two places": erofs(directory({b"a": SHARED, b"b": SHARED})),
    "a directory in itself": erofs(directory([(b"a", directory(bend={"loop": 1}))])),
    "a directory that is not itself": erofs(
        directory({b"a": directory([(b"z", file())], bend={"number": 36})})
    ),
    "an inode elsewhere": erofs(directory([(b"a", file(bend={"number": 1 << 60}))])),
    "data elsewhere": erofs(directory({b"a": file(b"x" * 600, layout=PLAIN, bend={"start": 1 << 30})})),
    "data longer": erofs(directory({b"a": file(b"x" * 600, layout=PLAIN, bend={"size": 1 << 19})})),
    "end over a block": erofs(directory({b"a": file(b"x" * 600, bend={"size": 1023})})),
    "a chunk in another file": erofs(
        directory({b"a": file(struct.pack("<HHI", 0, 1, 3), bend={"format": 9, "start": 0x20})})
    ),
    "a link to nothing": erofs(directory({b"a": symlink(b"")})),
    "a long link": erofs(directory({b"a": symlink(b"x" * 4096, layout=PLAIN)})),
    "a link longer": erofs(directory({b"a": symlink(b"x", bend={"size": 4000})})),
    "whiteout": erofs(directory({b".wh.x": file()})),
    "first cluster begins nothing": big(entries=((2, 0, 0), *REST)),
    "first extent not at 0": big(entries=((1, 5, 3), *REST)),
    "extent outside its cluster": big(entries=((1, 0, 3), (1, BLOCK, 4), *REST[1:])),
    "a count where there is none": big(entries=((1, 0, 3), (2, 0, 0x802), *REST[1:])),
    "no count": big(entries=((1, 0, 3), *REST), advice=BIG),
    "a count of nothing": big(entries=((1, 0, 3), (2, 0, 0x800), *REST[1:]), advice=BIG),
    "blocks elsewhere": big(entries=((1, 0, 1 << 31), *REST)),
    "rubbish for lz4": big(b"\xff" * BLOCK, entries=((1, 0, 3), *REST)),
    "plain data longer than its block": big(entries=((0, 0, 3), *REST)),
    "compression": big(entries=((1, 0, 3), *REST), algorithms=9),
    "an end in no file": big(advice=FRAGMENT),
    "an end in the root": erofs(
        directory({b"a": file(layout=FULL, index=header(advice=FRAGMENT) + bytes(16), bend={"size": 9})})
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case: str) -> None:
    with pytest.raises(ImageInvalid) as caught:
        read(WRONG[case])
    assert caught.value.message.isprintable()


UNREAD: dict[str, bytes] = {
    "48bit": erofs(directory(), features=0x80),
    "metabox": erofs(directory(), features=0x100),
    "a feature of tomorrow": erofs(directory(), features=1 << 20),
    "other files": erofs(directory(), devices=1),
    "large blocks of directories": erofs(directory(), directory_log=1),
    "an index of extents": big(advice=1),
    "lz4 of old": erofs(directory({b"a": file(TEXT, layout=FULL)}), features=0x6),
    "chunks in 48 bits": erofs(directory({b"a": file(b"x" * 9, layout=CHUNKS, bend={"start": 0x40})})),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_read_is_named(case: str) -> None:
    with pytest.raises(ImageUnsupported):
        read(UNREAD[case])


def test_limits() -> None:
    deep = directory()
    for _ in range(5):
        deep = directory({b"d": deep})
    assert len(read(erofs(deep), Limits(path_depth=6))) == 6
    with pytest.raises(ImageLimitExceeded, match="limit path_depth 4"):
        read(erofs(deep), Limits(path_depth=4))
    with pytest.raises(ImageLimitExceeded, match="limit file_bytes 9"):
        read(erofs(directory({b"a": file(bytes(10))})), Limits(file_bytes=9))
    with pytest.raises(ImageLimitExceeded, match="1 MB"):
        read(erofs(directory({b"a": file(b"x", bend={"size": 1 << 32}, layout=CHUNKS)})))


def test_devices_have_their_kinds() -> None:
    found = read(erofs(directory({b"c": Node(DEVICE), b"f": Node(FIFO)})))
    assert [entry.kind for entry, _ in found[1:]] == [Kind.DEVICE, Kind.FIFO]


SAMPLE = erofs(
    directory(
        {
            b"a": file(TEXT, layout=FULL),
            b"c": file(bytes(BLOCK) + b"x", layout=CHUNKS),
            b"d": directory({b"l": symlink(b"../a"), b"z": file(bytes(50))}),
        }
    )
)


@given(st.integers(1024, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_read_or_refused(at: int, change: int) -> None:
    bent = bytearray(SAMPLE)
    bent[at] ^= change
    try:
        read(bytes(bent))
    except HpcpodError as error:
        assert error.message.isprintable()
