# SPDX-License-Identifier: Apache-2.0
"""squashfs images that no tool writes; any bytes are read or refused, within bounds of time and memory."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, ImageInvalid, ImageLimitExceeded, ImageUnsupported
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.fstree import FsTree
from hpcpod.images.sources.squashfs import Squashfs
from hpcpod.images.unpacking.tarstream import Entry, Kind
from tests.testbed.squashes import NONE, Node, directory, file, squash, symlink

Tree = list[tuple[Entry, bytes]]


def read(image: bytes, limits: Limits = DEFAULT_LIMITS) -> Tree:
    """All entries, and the data of files; spends as `image unpack` does, but no more than 1 MB."""
    spent = 0

    def spend(count: int) -> None:
        nonlocal spent
        spent += count
        if spent > 1 << 20:
            raise ImageLimitExceeded("1 MB")

    opened = Squashfs(lambda at, count: image[at : at + count], len(image), limits)
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
leaves = st.one_of(
    st.binary(max_size=9000).map(file),
    st.integers(0, 3).map(lambda blocks: file(bytes(4096 * blocks) + b"x")),
    names.map(symlink),
)
trees = st.recursive(
    leaves, lambda inner: st.dictionaries(names, inner, max_size=4).map(directory), max_leaves=8
).filter(lambda node: node.kind == 1)


def flat(node: Node, above: bytes = b"") -> list[tuple[bytes, int, bytes]]:
    found = []
    for name, child in node.entries:
        found.append((above + name, child.kind, child.data))
        found += flat(child, above + name + b"/")
    return found


@given(trees)
def test_what_was_written_is_read(root: Node) -> None:
    kinds = {Kind.DIRECTORY: 1, Kind.FILE: 2, Kind.SYMLINK: 3}
    (top, _), *found = read(squash(root))
    assert (top.name, top.kind) == (b".", Kind.DIRECTORY)
    assert [(entry.name, kinds[entry.kind], data or entry.link) for entry, data in found] == flat(root)


def test_many_entries_span_blocks_of_metadata() -> None:
    root = directory({b"n%03d" % number: file(b"%d" % number) for number in range(600)})
    assert [data for _, data in read(squash(root))][1:] == [b"%d" % number for number in range(600)]


def test_names_of_one_file_are_hard_links() -> None:
    shared = file(b"x" * 10)
    found = read(squash(directory({b"a": shared, b"d": directory({b"b": shared})})))
    assert [(entry.name, entry.kind, entry.link) for entry, _ in found][1:] == [
        (b"a", Kind.FILE, b""),
        (b"d", Kind.DIRECTORY, b""),
        (b"d/b", Kind.HARDLINK, b"a"),
    ]


def test_devices_are_told_apart() -> None:
    found = read(squash(directory({b"b": Node(4), b"c": Node(5), b"f": Node(6), b"s": Node(7)})))
    assert [entry.kind for entry, _ in found][1:] == [Kind.DEVICE, Kind.DEVICE, Kind.FIFO, Kind.FIFO]


A = file(b"a")
TWICE = directory({b"x": A})
BAD: dict[str, bytes] = {
    "empty": b"",
    "superblock cut": squash(directory())[:90],
    "tables cut": squash(directory({b"a": A}))[:-20],
    "magic": squash(directory(), magic=0x12345678),
    "version": squash(directory(), major=3),
    "no such compression": squash(directory(), compression=9),
    "block size": squash(directory(), block=4097),
    "block size and its logarithm": squash(directory(), log=13),
    "huge blocks": squash(directory(), block=1 << 30, log=30),
    "longer than the file": squash(directory(), used=1 << 40),
    "tables behind one another": squash(directory(), directory_table=96),
    "table in the superblock": squash(directory(), inode_table=0),
    "root outside": squash(directory(), root=1 << 40),
    "root behind its block": squash(directory(), root=8000),
    "root is a file": squash(file(b"x")),
    "type": squash(directory({b"a": file(b"", bend={"kind": 15})})),
    "type 0": squash(directory({b"a": file(b"", bend={"kind": 0})})),
    "name ..": squash(directory([(b"..", A)])),
    "name .": squash(directory([(b".", A)])),
    "name with a slash": squash(directory([(b"a/b", A)])),
    "name with a leading slash": squash(directory([(b"/etc", A)])),
    "name with NUL": squash(directory([(b"a\0b", A)])),
    "whiteout": squash(directory([(b".wh.a", A)])),
    "names twice": squash(directory([(b"a", A), (b"a", file(b"b"))])),
    "names do not ascend": squash(directory([(b"b", A), (b"a", file(b"b"))])),
    "link, then directory of one name": squash(directory([(b"a", symlink(b"/")), (b"a", TWICE)])),
    "directory in two places": squash(directory({b"a": TWICE, b"b": TWICE})),
    "directory in itself": squash(directory([(b"a", directory([(b"x", Node(1, bend={"loop": 1}))]))])),
    "directory longer than its list": squash(directory({b"a": A}, bend={"size": 40})),
    "directory that ends in an entry": squash(directory({b"a": A}, bend={"size": 20})),
    "directory outside": squash(directory({b"a": A}, bend={"block": 1 << 30})),
    "too many under one header": squash(directory({b"a": A}, bend={"count": 256})),
    "link of no length": squash(directory({b"a": symlink(b"x", bend={"length": 0})})),
    "link that is too long": squash(directory({b"a": symlink(b"x", bend={"length": 1 << 31})})),
    "file longer than its blocks": squash(directory({b"a": file(b"x", bend={"size": 1 << 40})})),
    "file of more blocks": squash(directory({b"a": file(b"x", bend={"size": 90000})})),
    "data outside": squash(directory({b"a": file(b"x", bend={"start": 1 << 50})})),
    "data in the superblock": squash(directory({b"a": file(b"x", bend={"start": 0})})),
    "block of another size": squash(directory({b"a": file(b"xy", bend={"word": 1 << 24 | 1})})),
    "block that is too long": squash(directory({b"a": file(b"xy", bend={"word": 1 << 24 | 8192})})),
    "block that is not compressed": squash(directory({b"a": file(b"xy", bend={"word": 2})})),
    "fragment that is not there": squash(directory({b"a": file(b"xy", bend={"fragment": 0})})),
    "fragment beyond the table": squash(
        directory({b"a": file(b"xy", bend={"fragment": NONE - 1})}), fragments=NONE, fragment_table=1 << 60
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_refused(case: str) -> None:
    with pytest.raises(ImageInvalid) as caught:
        read(BAD[case])
    assert caught.value.message.isprintable()


def test_limits() -> None:
    deep = file()
    for _ in range(6):
        deep = directory({b"d": deep})
    assert len(read(squash(deep), Limits(path_depth=6))) == 7
    with pytest.raises(ImageLimitExceeded, match="limit path_depth 5"):
        read(squash(deep), Limits(path_depth=5))
    with pytest.raises(ImageLimitExceeded, match="limit file_bytes 9"):
        read(squash(directory({b"a": file(bytes(10))})), Limits(file_bytes=9))
    linked = [file(b"%d" % number) for number in range(4)]
    many = directory({b"%d%d" % (side, number): linked[number] for side in (0, 1) for number in range(4)})
    with pytest.raises(ImageLimitExceeded, match="limit directories 3"):
        read(squash(many), Limits(directories=3))


@pytest.mark.parametrize("number", [2, 3])
def test_rarer_compressions_are_named(number: int) -> None:
    with pytest.raises(ImageUnsupported, match=r"lzma|lzo"):
        read(squash(directory(), compression=number))


SAMPLE = squash(
    directory({b"a": file(b"x" * 5000), b"d": directory({b"l": symlink(b"../a"), b"z": file(bytes(5000))})})
)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_read_or_refused(at: int, change: int) -> None:
    bent = bytearray(SAMPLE)
    bent[at] ^= change
    try:
        read(bytes(bent))
    except HpcpodError as error:
        assert error.message.isprintable()


@given(st.binary(max_size=64), st.integers(0, 200), st.sampled_from([1, 4, 5, 6]))
def test_rubbish_for_metadata_is_refused(rubbish: bytes, length: int, compression: int) -> None:
    """Compressed blocks are what the decompressors see first."""
    image = bytearray(squash(directory(), compression=compression))
    at = int.from_bytes(image[64:72], "little")
    image[at : at + 2] = struct.pack("<H", length)
    image[at + 2 : at + 2 + len(rubbish)] = rubbish
    with pytest.raises(ImageInvalid):
        read(bytes(image))
