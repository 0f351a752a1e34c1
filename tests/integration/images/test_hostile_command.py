# SPDX-License-Identifier: Apache-2.0
"""``hpcpod image unpack`` on one image of every class of attack, as a user and as root; and forms of DEST."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.testbed.layouts import (
    BLOCK,
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
    symlink,
    write_archive,
    zst,
)
from tests.testbed.unpacking import Unpacking

CANARY = b"../canary"
OVERLAY = {
    b"SCHILY.xattr.user.overlay.redirect": b"/etc",
    b"SCHILY.xattr.user.overlay.opaque": b"y",
    b"SCHILY.xattr.trusted.overlay.opaque": b"y",
    b"SCHILY.xattr.user.fuseoverlayfs.override_stat": b"0:0:4755",
    b"SCHILY.xattr.user.containers.override_stat": b"0:0:4755",
    b"LIBARCHIVE.xattr.security.capability": b"AQAAAgAgAAAAAAAAAAAAAAAAAAA",
    b"RHT.security.selinux": b"unconfined_u:object_r:shadow_t:s0",
    b"SCHILY.acl.access": b"user::rwx,group::rwx,other::rwx",
}
CHAIN = b"".join(symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(50)) + directory(b"l50")
LONG_CHAIN = b"".join(
    directory(b"k%d" % n)
    + long_name(b"../" * 40 + b"./" * 900 + b"k%d" % (n + 1), b"K")
    + symlink(b"k%d/next" % n, b"x")
    for n in range(5)
) + directory(b"k5")
"""Links whose targets add up to more than PATH_MAX."""
NEXT = b"k0/next/next/next/next/next"

REFUSED: dict[str, tuple[bytes, ...]] = {
    "up": (file(b"../canary/file", b"x"),),
    "up in the middle": (directory(b"a") + file(b"a/../../canary/file", b"x"),),
    "up, in pax": (pax({b"path": b"../canary/file"}) + file(b"x", b"x"),),
    "up, in a GNU name": (long_name(b"../canary/file") + file(b"x", b"x"),),
    "up, in a prefix": (file(b"file", b"x", prefix=b"../canary"),),
    "hard link up": (hardlink(b"h", CANARY + b"/file"),),
    "hard link through a symlink": (symlink(b"l", CANARY), hardlink(b"h", b"l/file")),
    "hard link in pax": (pax({b"linkpath": CANARY + b"/file"}) + hardlink(b"h", b"x"),),
    "root as symlink": (symlink(b"./", CANARY), file(b"file", b"x")),
    "root as file": (file(b".", b"x"),),
    "51 symlinks": (CHAIN + file(b"l0/x"),),
    "bare whiteout": (file(b"a"), file(b".wh.")),
    "whiteout of up": (file(b"a"), file(b".wh...")),
    "negative size": (header(b"x", size=base256(-BLOCK, 12)),),
    "data behind the end": (file(b"a") + bytes(2 * BLOCK) + file(b"b"),),
    "huge header": (header(b"x", b"x", size=base256(1 << 33, 12)),),
    "huge GNU name": (header(b"x", b"L", size=base256(1 << 33, 12)),),
    "sparse": (header(b"x", b"S", magic=b"ustar  \x00"),),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(each_unpacking: Unpacking, case: str) -> None:
    ended = each_unpacking.refused(each_unpacking.layout(image(*REFUSED[case])))
    assert ended.slug in ("image-invalid", "image-limit")
    assert ended.seconds < 10


NEUTRAL: dict[str, tuple[tuple[bytes, ...], set[str]]] = {
    "absolute name": ((file(b"/etc/hostname", b"x"),), {"etc", "etc/hostname"}),
    "through an absolute symlink": ((symlink(b"l", b"/"), file(b"l/x", b"x")), {"l", "x"}),
    "through a symlink up": (
        (symlink(b"l", b"../canary") + directory(b"canary"), file(b"l/file", b"x")),
        {"l", "canary", "canary/file"},
    ),
    "through a magic link": (
        (symlink(b"l", b"/proc/self/cwd") + directory(b"proc/self/cwd"), file(b"l/x")),
        {"l", "proc", "proc/self", "proc/self/cwd", "proc/self/cwd/x"},
    ),
    "over a symlink": ((symlink(b"l", b"../canary/file"), file(b"l", b"x")), {"l"}),
    "whiteout through a symlink up": (
        (directory(b"canary") + file(b"canary/file") + symlink(b"l", b"../canary"), file(b"l/.wh.file")),
        {"canary", "l"},
    ),
    "opaque through a symlink up": (
        (directory(b"canary") + file(b"canary/file") + symlink(b"l", b"/canary"), file(b"l/.wh..wh..opq")),
        {"canary", "l"},
    ),
    "40 symlinks": ((CHAIN + file(b"l10/x"),), {f"l{n}" for n in range(51)} | {"l50/x"}),
    "targets of more than PATH_MAX": (
        (LONG_CHAIN + file(NEXT + b"/x"),),
        {f"k{n}" for n in range(6)} | {f"k{n}/next" for n in range(5)} | {"k5/x"},
    ),
    "devices and FIFOs": (
        (
            header(b"null", b"3")
            + header(b"disk", b"4", mode=0o666)
            + header(b"etc/passwd", b"6")
            + header(b"dev/null", b"3")
            + file(b"a"),
        ),
        {"a", "etc", "dev"},
    ),
    "set-ID": (
        (directory(b"d", 0o7777) + file(b"d/f", b"x", mode=0o7777) + hardlink(b"h", b"d/f"),),
        {"d", "d/f", "h"},
    ),
    "xattrs": (
        (pax(OVERLAY) + directory(b"d") + pax(OVERLAY) + file(b"d/f") + pax(OVERLAY, b"g") + file(b"g"),),
        {"d", "d/f", "g"},
    ),
    "owners": (
        (
            pax({b"uid": b"4294967296", b"gid": b"4294967296", b"uname": b"root"})
            + file(b"pax")
            + pax({b"uid": b"-1", b"gid": b"x"})
            + file(b"odd"),
        ),
        {"pax", "odd"},
    ),
    "names": ((file(b"\x1b[31m\n\r\xff\xe2\x80\xae"),), {"\x1b[31m\n\r\udcff\u202e"}),
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_neutralised(each_unpacking: Unpacking, case: str) -> None:
    layers, names = NEUTRAL[case]
    assert set(each_unpacking.tree(each_unpacking.layout(image(*layers)))) == names


ODD = b"\x1b]0;x\x07\n\r\x9b\xff\xe2\x80\xae\xe2\x81\xa6"


@pytest.mark.parametrize(
    "tar",
    [
        file(ODD + b"/.."),
        hardlink(b"h", ODD),
        symlink(ODD, b""),
        file(b".wh." + ODD + b"/x"),
        file(ODD) + file(ODD + b"/x"),
        pax(b"30 " + ODD),
        header(ODD, b"\x1b"),
        header(ODD, b"x", size=base256(1 << 40, 12)),
    ],
)
def test_messages_show_names_escaped(unpacking: Unpacking, tar: bytes) -> None:
    """That every line is printable is checked by refused()."""
    unpacking.refused(unpacking.layout(image(tar)))


def joined(more: Mapping[str, object], document: dict[str, object]) -> dict[str, object]:
    return {**document, **more}


def test_messages_show_json_escaped(unpacking: Unpacking) -> None:
    odd = ODD.decode("latin-1")
    twice = {f"{odd}a": 1, f"{odd}A": 1}
    for changed in ({"mediaType": odd}, {"schemaVersion": odd}, {"config": {"digest": odd}}, twice):
        bend = functools.partial(joined, changed)
        unpacking.refused(unpacking.layout(Image([Layer(b"")], bend_manifest=bend)))


# --------------------------------------------------------------------------- compression, seen from outside

PLAIN = file(b"good", b"1") + bytes(2 * BLOCK)
STREAMS: dict[str, tuple[str, bytes, bool]] = {
    "gzip: members": ("gzip", gz(PLAIN[:700]) + gz(PLAIN[700:]), True),
    "gzip: rubbish behind": ("gzip", gz(PLAIN) + b"junk", False),
    "gzip: zeros behind": ("gzip", gz(PLAIN) + bytes(8), False),
    "gzip: wrong CRC": ("gzip", gz(PLAIN)[:-8] + b"\1\2\3\4" + gz(PLAIN)[-4:], False),
    "gzip: cut trailer": ("gzip", gz(PLAIN)[:-4], False),
    "zstd: frames": ("zstd", zst(PLAIN[:700]) + b"\x5f\x2a\x4d\x18\0\0\0\0" + zst(PLAIN[700:]), True),
    "zstd: rubbish behind": ("zstd", zst(PLAIN) + b"junk", False),
    "zstd: wrong CRC": ("zstd", zst(PLAIN)[:-4] + b"\1\2\3\4", False),
    "zstd: cut trailer": ("zstd", zst(PLAIN)[:-2], False),
    "zstd: gzip inside": ("zstd", gz(PLAIN), False),
    "gzip: zstd inside": ("gzip", zst(PLAIN), False),
    "plain: gzip inside": ("none", gz(PLAIN), False),
}


@pytest.mark.parametrize("case", STREAMS)
def test_streams(unpacking: Unpacking, case: str) -> None:
    compression, blob, good = STREAMS[case]
    reference = unpacking.layout(Image([Layer(PLAIN, compression, end=b"", blob=blob)]))
    if good:
        assert set(unpacking.tree(reference)) == {"good"}
    else:
        assert unpacking.refused(reference).slug == "image-invalid"


# --------------------------------------------------------------------------- DEST

GOOD = image(directory(b"d") + file(b"d/f", b"1"))
ALL = {"d", "d/f"}
EXISTING: dict[str, Callable[[Path], None]] = {
    "a directory": Path.mkdir,
    "a file": Path.touch,
    "a link to elsewhere": lambda path: path.symlink_to("../canary"),
    "a dangling link": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("case", EXISTING)
def test_existing_destinations(each_unpacking: Unpacking, case: str, slash: str) -> None:
    place = each_unpacking
    EXISTING[case](place.target)
    before = place.target.lstat()
    ended = place.run(place.layout(GOOD), f"{place.target}{slash}")
    assert (ended.status, ended.slug) == (125, "usage")
    assert os.path.samestat(before, place.target.lstat())
    assert before.st_mtime_ns == place.target.lstat().st_mtime_ns
    place.target.rmdir() if place.target.is_dir() and not place.target.is_symlink() else place.target.unlink()


def test_relative_destinations(unpacking: Unpacking) -> None:
    reference = unpacking.layout(GOOD)
    for destination in ("out", "./out", "canary/../out", "out/", "out//", "../place/out"):
        assert set(unpacking.tree(reference, destination, cwd=unpacking.place)) == ALL
        unpacking.target.rename(unpacking.inputs / f"done{len(os.listdir(unpacking.inputs))}")


@pytest.mark.parametrize("destination", ["nothing/out", "canary/file/out", "canary/link/out", ""])
def test_destinations_below_nothing(unpacking: Unpacking, destination: str) -> None:
    ended = unpacking.run(unpacking.layout(GOOD), destination, cwd=unpacking.place)
    assert (ended.status, ended.slug) == (125, "usage")


def test_a_destination_that_may_not_be_made(unpacking: Unpacking) -> None:
    closed = unpacking.place / "canary" / "directory"
    closed.chmod(0o555)
    ended = unpacking.run(unpacking.layout(GOOD), str(closed / "out"))
    assert (ended.status, ended.slug) == (125, "store-unusable")
    assert "EACCES" in ended.said


def test_the_parent_may_be_a_link(unpacking: Unpacking) -> None:
    """Whoever names DEST decides; links in its parents are the user's own."""
    (unpacking.home / "way").symlink_to("place")
    assert set(unpacking.tree(unpacking.layout(GOOD), str(unpacking.home / "way" / "out"))) == ALL


# --------------------------------------------------------------------------- a node that is short of things

ON_A_SMALL_DISK = """
mount -t tmpfs -o {options} t "$0/tmp" && "$@"
status=$?
ls -A "$0/tmp" >&2
exit $status
"""


@pytest.mark.needs("userns")
@pytest.mark.parametrize("options", ["size=256k", "nr_inodes=20"])
def test_a_full_disk(unpacking: Unpacking, options: str) -> None:
    """What fits no disk is refused in one line, and removed again: `ls` has nothing to show."""
    tar = b"".join(directory(b"%d" % n) + file(b"%d/f" % n, bytes(40_000)) for n in range(30))
    script = ON_A_SMALL_DISK.format(options=options)
    small = ("unshare", "--user", "--map-current-user", "--mount", "--map-root-user", "sh", "-c", script)
    ended = unpacking.run(
        unpacking.layout(image(tar)),
        str(unpacking.home / "tmp" / "out"),
        before=(*small, str(unpacking.home)),
    )
    assert (ended.status, ended.slug) == (125, "store-full")


@pytest.mark.parametrize("files", [16, 24, 32])
def test_few_descriptors(unpacking: Unpacking, files: int) -> None:
    """More directories than descriptors: it either ends well or says EMFILE, and leaves nothing."""
    tar = b"".join(directory(b"%d" % n) + file(b"%d/f" % n, b"x") for n in range(100))
    ended = unpacking.run(unpacking.layout(image(tar)), files=files)
    assert ended.status == 0 or (ended.slug == "store-unusable" and "EMFILE" in ended.said), ended.said


def test_archives(each_unpacking: Unpacking) -> None:
    layout = Path(each_unpacking.layout(GOOD).partition(":")[2])
    path = write_archive(each_unpacking.inputs / "image.tar", layout)
    assert set(each_unpacking.tree(f"oci-archive:{path}")) == ALL
