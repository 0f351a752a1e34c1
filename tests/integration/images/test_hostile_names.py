# SPDX-License-Identifier: Apache-2.0
"""Names, links and whiteouts of images: nothing leaves the target, and the tree is what image-spec says.

facts: image-spec, layer.md; CVE-2007-4559, CVE-2021-29136, CVE-2025-4517 are the classes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.testbed.layouts import directory, file, hardlink, header, image, long_name, pax, symlink
from tests.testbed.places import Place

Writer = Callable[[bytes], bytes]

KINDS: dict[str, Writer] = {
    "file": lambda name: file(name, b"x"),
    "directory": directory,
    "symlink": lambda name: symlink(name, b"/"),
    "hardlink": lambda name: hardlink(name, b"there"),
    "fifo": lambda name: header(name, b"6"),
    "device": lambda name: header(name, b"3"),
    "whiteout": lambda name: file(name + b"/.wh.x"),
}

OUTSIDE = [b"../x", b"a/../../x", b"/../x", b"a/..", b"..", b"./../x", b"a//../../x"]


@pytest.mark.parametrize("kind", KINDS)
def test_dotdot_is_refused(place: Place, kind: str) -> None:
    for name in OUTSIDE:
        reference = place.layout(image(file(b"there", b"y") + directory(b"a") + KINDS[kind](name)))
        assert place.refused(reference).slug == "image-invalid", name
        _forget(place)


def _forget(place: Place) -> None:
    """Remove the layout, for the next one of a table."""
    layout = place.account.home / "layout"
    layout.rename(place.account.home / f"layout.{len(list(place.account.home.iterdir()))}")


ESCAPES = {
    "absolute symlink": symlink(b"l", b"/"),
    "symlink up": symlink(b"l", b"../../../../../.."),
    "symlink to the canary": symlink(b"l", b"../canary"),
    "chain": symlink(b"l", b"m") + symlink(b"m", b"n/o") + directory(b"n") + symlink(b"n/o", b"/../.."),
    "proc": symlink(b"l", b"/proc/self/cwd"),
    "proc root": symlink(b"l", b"/proc/1/root/tmp"),
}


@pytest.mark.parametrize("later", [False, True], ids=["same layer", "later layer"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_parents_are_resolved_inside(place: Place, escape: str, later: bool) -> None:
    victim = (
        file(b"l/file", b"overwritten")
        + file(b"l/canary/file", b"overwritten")
        + symlink(b"l/link", b"overwritten")
        + file(b"l/.wh.link")
    )
    layers = [ESCAPES[escape], victim] if later else [ESCAPES[escape] + victim]
    outcome = place.unpack(place.layout(image(*layers)))
    assert outcome.slug in (None, "image-invalid")


def test_endless_symlinks_are_refused(place: Place) -> None:
    chain = b"".join(symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(60)) + directory(b"l60")
    assert place.refused(place.layout(image(chain + file(b"l0/x")))).slug == "image-invalid"


def test_loop_is_refused(place: Place) -> None:
    place.refused(place.layout(image(symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x"))))


@pytest.mark.parametrize("name", [b"a", b"./a", b"a/.", b"a/./."])
@pytest.mark.parametrize("same", [False, True], ids=["next layer", "same layer"])
def test_parent_that_is_a_file_is_refused(place: Place, name: bytes, same: bool) -> None:
    first, second = file(name, b"1"), file(b"a/b", b"2")
    place.refused(place.layout(image(first + second) if same else image(first, second)))


def test_last_component_is_never_followed(place: Place) -> None:
    target = str(place.path / "canary" / "file").encode()
    tree = place.tree(
        place.layout(
            image(
                symlink(b"l", target) + symlink(b"m", b"../canary/file"), file(b"l", b"1") + file(b"m", b"2")
            )
        )
    )
    assert tree == {"l": ("-rw-r--r--", b"1", 1), "m": ("-rw-r--r--", b"2", 1)}


HARD_LINKS_REFUSED = {
    "outside": hardlink(b"h", b"../canary/file"),
    "absolute": hardlink(b"h", b"/etc/passwd"),
    "absent": hardlink(b"h", b"nothing"),
    "itself": hardlink(b"h", b"h"),
    "a directory": directory(b"d") + hardlink(b"h", b"d"),
    "the root": hardlink(b"h", b"/"),
    "through a symlink up": symlink(b"l", b"../canary") + hardlink(b"h", b"l/file"),
    "through an absolute symlink": symlink(b"l", b"/etc") + hardlink(b"h", b"l/passwd"),
    "what it replaces": directory(b"d") + file(b"d/x", b"1") + hardlink(b"d", b"d/x"),
    "nothing": hardlink(b"h", b""),
}


@pytest.mark.parametrize("case", HARD_LINKS_REFUSED)
def test_hard_links_refused(place: Place, case: str) -> None:
    assert place.refused(place.layout(image(HARD_LINKS_REFUSED[case]))).slug == "image-invalid"


def test_hard_links(place: Place) -> None:
    first = file(b"a", b"1") + hardlink(b"b", b"a") + hardlink(b"./c", b"/a") + symlink(b"s", b"/etc/passwd")
    # Written again, b is a file of its own: a and c must not change with it.
    second = file(b"b", b"2") + hardlink(b"t", b"s") + hardlink(b"new/d", b"c") + hardlink(b"a", b"a")
    assert place.tree(place.layout(image(first, second))) == {
        "a": ("-rw-r--r--", b"1", 3),
        "b": ("-rw-r--r--", b"2", 1),
        "c": ("-rw-r--r--", b"1", 3),
        "new": ("drwxr-xr-x",),
        "new/d": ("-rw-r--r--", b"1", 3),
        "s": ("lrwxrwxrwx", "/etc/passwd"),
        "t": ("lrwxrwxrwx", "/etc/passwd"),
    }


@pytest.mark.parametrize("name", [b".", b"./", b"/", b"./.", b"//", b"././"])
@pytest.mark.parametrize("kind", ["file", "symlink", "hardlink", "fifo", "device"])
def test_root_must_stay_a_directory(plain_place: Place, kind: str, name: bytes) -> None:
    tar = file(b"there", b"y") + KINDS[kind](name)
    assert plain_place.refused(plain_place.layout(image(tar))).slug == "image-invalid"


def test_root_entry_sets_the_mode(place: Place) -> None:
    place.tree(place.layout(image(directory(b"./", 0o555) + file(b"a"))))
    assert place.target.stat().st_mode & 0o7777 == 0o555
    assert place.target.stat().st_mtime == 1_000_000_000


def test_names_are_normal(place: Place) -> None:
    long = b"d/" + b"x" * 200
    tree = place.tree(
        place.layout(
            image(
                file(b"/abs", b"1")
                + file(b"./dot//double/./x", b"2")
                + long_name(long)
                + file(b"short", b"3")
                + pax({b"path": "d/ü\n".encode()})
                + file(b"short", b"4")
                + file(b"tail", b"5", prefix=b"head")
                + header(b"v7/", b"\0", magic=bytes(8))
            )
        )
    )
    assert {name: entry[1] for name, entry in tree.items() if len(entry) > 1} == {
        "abs": b"1",
        "dot/double/x": b"2",
        long.decode(): b"3",
        "d/ü\n": b"4",
        "head/tail": b"5",
    }
    assert tree["v7"] == ("drw-r--r--",)


def test_modes_and_what_is_left_out(place: Place) -> None:
    tar = (
        file(b"suid", mode=0o6755)
        + directory(b"sgid", 0o2775)
        + directory(b"tmp", 0o1777)
        + directory(b"closed", 0o000)
        + file(b"closed/x", b"1", mode=0o000)
        + pax({b"SCHILY.xattr.user.overlay.opaque": b"y", b"LIBARCHIVE.xattr.security.capability": b"AA"})
        + file(b"xattr", b"2")
        + header(b"fifo", b"6")
        + header(b"dev", b"3")
        + header(b"block", b"4")
    )
    reference = place.layout(image(tar))
    outcome = place.unpack(reference)
    assert outcome.value["skipped"] == 3
    modes = {path.name: oct(path.lstat().st_mode & 0o7777) for path in place.target.iterdir()}
    assert modes == {"suid": "0o755", "sgid": "0o775", "tmp": "0o1777", "closed": "0o0", "xattr": "0o644"}
    import os

    assert os.listxattr(place.target / "xattr") == []
    place.target.joinpath("closed").chmod(0o700)


def test_names_in_messages_are_escaped(plain_place: Place) -> None:
    name = b"\x1b[31m\n\xff\xe2\x80\xae/.."
    outcome = plain_place.refused(plain_place.layout(image(file(name))))
    assert "\\x1b[31m\\n" in outcome.message
    assert "\\udcff\\u202e" in outcome.message


# --------------------------------------------------------------------------- whiteouts

LOWER = (
    directory(b"d")
    + file(b"d/low", b"1")
    + directory(b"d/sub")
    + file(b"d/sub/low", b"1")
    + file(b"f", b"1")
    + symlink(b"s", b"d")
)


def names(place: Place, *layers: bytes) -> set[str]:
    return set(place.tree(place.layout(image(LOWER, *layers))))


ALL = {"d", "d/low", "d/sub", "d/sub/low", "f", "s"}

WHITEOUTS = {
    "a file": (file(b".wh.f"), ALL - {"f"}),
    "a symlink, not its target": (file(b".wh.s"), ALL - {"s"}),
    "a directory": (file(b".wh.d"), {"f", "s"}),
    "what is not there": (file(b".wh.no") + file(b"no/no/.wh.no"), ALL),
    "below a file": (file(b"f/.wh.x"), ALL),
    "through a symlink": (file(b"s/.wh.low"), ALL - {"d/low"}),
    "opaque": (file(b"d/.wh..wh..opq"), {"d", "f", "s"}),
    "opaque through a symlink": (file(b"s/.wh..wh..opq"), {"d", "f", "s"}),
    "opaque root": (file(b".wh..wh..opq"), set()),
    "before its sibling": (file(b"d/.wh..wh..opq") + file(b"d/new"), {"d", "d/new", "f", "s"}),
    "after its sibling": (file(b"d/new") + file(b"d/.wh..wh..opq"), {"d", "d/new", "f", "s"}),
    "after a grandchild": (
        file(b"d/sub/new") + file(b"d/.wh..wh..opq"),
        {"d", "d/sub", "d/sub/new", "f", "s"},
    ),
    "after a child made through a symlink": (
        file(b"s/new") + file(b"d/.wh..wh..opq"),
        {"d", "d/new", "f", "s"},
    ),
    "not of its own layer's file": (file(b"f", b"2") + file(b".wh.f"), ALL),
    "of a directory made anew": (directory(b"d") + file(b"d/new") + file(b".wh.d"), {"d", "d/new", "f", "s"}),
    "of a directory with a new child": (
        file(b"d/sub/new") + file(b".wh.d"),
        {"d", "d/sub", "d/sub/new", "f", "s"},
    ),
    "aufs's own": (directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/1.2") + file(b".wh..wh.aufs"), ALL),
    "as a hard link": (file(b"g") + hardlink(b".wh.f", b"g"), ALL - {"f"} | {"g"}),
}


@pytest.mark.parametrize("case", WHITEOUTS)
def test_whiteouts(plain_place: Place, case: str) -> None:
    layer, expected = WHITEOUTS[case]
    assert names(plain_place, layer) == expected


def test_whiteouts_of_the_lowest_layer_hide_nothing(plain_place: Place) -> None:
    tree = plain_place.tree(plain_place.layout(image(file(b"a") + file(b".wh.a") + file(b".wh..wh..opq"))))
    assert set(tree) == {"a"}


@pytest.mark.parametrize(
    "tar",
    [
        file(b".wh."),
        file(b"d/.wh.."),
        file(b".wh..."),
        file(b".wh.d/x"),
        directory(b".wh.f"),
        symlink(b".wh.f", b"/"),
    ],
)
def test_bad_whiteouts(plain_place: Place, tar: bytes) -> None:
    assert plain_place.refused(plain_place.layout(image(LOWER, tar))).slug == "image-invalid"


STATES: dict[str, bytes] = {
    "absent": b"",
    "file": file(b"x", b"1"),
    "directory": directory(b"x") + file(b"x/y", b"1"),
    "symlink": symlink(b"x", b"t"),
    "hardlink": hardlink(b"x", b"t/z"),
    "device": header(b"x", b"3"),
}
FIRST = {"absent": "", "file": "-", "directory": "d", "symlink": "l", "hardlink": "-", "device": ""}


@pytest.mark.parametrize("same", [False, True], ids=["next layer", "same layer"])
@pytest.mark.parametrize("after", STATES)
@pytest.mark.parametrize("before", STATES)
def test_type_changes(plain_place: Place, before: str, after: str, same: bool) -> None:
    base = directory(b"t") + file(b"t/z", b"1")
    lower, upper = base + STATES[before], STATES[after]
    tree = plain_place.tree(plain_place.layout(image(lower + upper) if same else image(lower, upper)))
    expected = FIRST[before if after == "absent" else after]
    assert tree.get("x", ("",))[0][:1] == expected
    assert tree["t"][0] == "drwxr-xr-x"
    assert tree["t/z"][1] == b"1"
    assert ("x/y" in tree) == (expected == "d")
