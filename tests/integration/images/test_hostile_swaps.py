# SPDX-License-Identifier: Apache-2.0
"""Bytes that change between check and use: the result is an image that was verified, or a refusal."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, remove_tree
from tests.testbed.layouts import Image, Layer, digest, directory, file, image, symlink, write_layout
from tests.testbed.places import Place, scan
from tests.testbed.unpacking import Unpacking

FILES = 6
GOOD = image(b"".join(file(b"f%d" % n, b"good" * 300) for n in range(FILES)), compression="none")
EVIL = image(
    symlink(b"l", b"../canary") + b"".join(file(b"f%d" % n, b"evil" * 300) for n in range(FILES)),
    compression="none",
)
ROUNDS = 150
"""Of each kind: a thousand in all."""


def blobs(layout: Path, made: Image) -> dict[str, Path]:
    """Paths of an image's files in a layout, by what they are."""
    raw, _ = made.blobs()
    manifest = json.loads(raw)
    names = {
        "manifest": digest(raw),
        "config": manifest["config"]["digest"],
        "layer": manifest["layers"][0]["digest"],
    }
    found = {what: layout / "blobs" / name.replace(":", "/") for what, name in names.items()}
    return found | {"index.json": layout / "index.json"}


@contextmanager
def swapping(path: Path, contents: list[bytes]) -> Iterator[None]:
    """Put one content after the other into place, by rename, until the body ends."""
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            new = path.with_name(f"new{number % 2}")
            new.write_bytes(contents[number % len(contents)])
            new.chmod(0o644)
            new.rename(path)
            number += 1
            stop.wait(0.0005)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def is_good(tree: dict[str, tuple[object, ...]]) -> bool:
    return len(tree) == FILES and all(entry[1] == b"good" * 300 for entry in tree.values())


@pytest.mark.parametrize("what", ["layer", "manifest", "config"])
def test_blobs_swapped_by_rename(plain_place: Place, what: str) -> None:
    """Many rounds through the library, since a command of its own each would take minutes."""
    layout = plain_place.account.home / "layout"
    reference = plain_place.layout(GOOD)
    good, evil = blobs(layout, GOOD)[what], blobs(plain_place.account.home / "evil", EVIL)[what]
    write_layout(plain_place.account.home / "evil", EVIL)
    refused = 0
    with swapping(good, [good.read_bytes(), evil.read_bytes()]):
        for _ in range(ROUNDS):
            outcome = plain_place.unpack(reference)
            assert outcome.slug in (None, "image-digest"), outcome.message
            refused += outcome.slug is not None
            if outcome.slug is None:
                assert is_good(scan(plain_place.target))
                remove_tree(plain_place.target)
    assert refused < ROUNDS


def test_layer_swapped_under_the_command(unpacking: Unpacking) -> None:
    reference = unpacking.layout(GOOD)
    layer = blobs(Path(reference[4:]), GOOD)["layer"]
    bad = bytearray(layer.read_bytes())
    bad[600] ^= 1
    elsewhere = unpacking.account.home.parent / "swapped"
    os.rename(Path(reference[4:]), elsewhere)
    with swapping(elsewhere / layer.relative_to(reference[4:]), [bytes(bad), layer_bytes(GOOD)]):
        for number in range(20):
            ended = unpacking.run(f"oci:{elsewhere}")
            if ended.status:
                assert ended.slug == "image-digest", ended.said
                continue
            assert is_good(scan(unpacking.target))
            unpacking.target.rename(elsewhere / f"done{number}")


def layer_bytes(made: Image) -> bytes:
    return made.layers[0].packed


def test_index_swapped(plain_place: Place) -> None:
    """The index is read once: what it says is what is unpacked, the one image or the other."""
    layout = plain_place.account.home / "layout"
    plain_place.layout({"a": GOOD, "b": EVIL})
    index = layout / "index.json"
    text = index.read_bytes()
    swapped = text.replace(b'"a"', b'"x"').replace(b'"b"', b'"a"')
    seen = set()
    with swapping(index, [text, swapped]):
        for number in range(30):
            outcome = plain_place.unpack(f"oci:{layout}:a")
            assert outcome.slug is None, outcome.message
            tree = scan(plain_place.target)
            seen.add(is_good(tree))
            assert is_good(tree) or set(tree) == {"l"} | {f"f{n}" for n in range(FILES)}
            plain_place.target.rename(plain_place.account.home / f"done{number}")
    assert seen


@pytest.mark.needs("userns", "fuse")
@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize("what", ["index.json", "manifest", "config", "layer"])
def test_other_bytes_at_the_second_read(unpacking: Unpacking, what: str, when: str) -> None:
    """From a FUSE file system.  What was read once must not be read again and believed."""
    made = Image([Layer(directory(b"d") + file(b"d/f", b"1" * 3000), "none")])
    other = Image([Layer(symlink(b"d", b"../canary") + file(b"d/f", b"2" * 3000), "none")])
    source = write_layout(unpacking.inputs / "source", made)
    write_layout(unpacking.inputs / "other", other)
    path = blobs(source, made)[what]
    twin = path.with_name(f"{path.name}.second")
    twin.write_bytes(
        blobs(unpacking.inputs / "other", other)[what].read_bytes().ljust(path.stat().st_size, b" ")
    )
    point = unpacking.inputs / "mounted"
    point.mkdir(mode=0o755)
    os.chown(point, unpacking.account.uid, unpacking.account.uid)
    changing = ROOT / "tests" / "testbed" / "changing.py"
    copy = unpacking.inputs / "changing.py"
    copy.write_text(changing.read_text())
    before = ("unshare", "--user", "--mount", "--map-root-user")
    server = (sys.executable, str(copy), str(point), str(source), when)
    ended = unpacking.run(f"oci:{point}", before=(*before, *server))
    if ended.status:
        assert ended.slug in ("image-digest", "image-invalid", "image-not-found"), ended.said
    else:
        assert (unpacking.target / "d" / "f").read_bytes() == b"1" * 3000
        assert not (unpacking.target / "d").is_symlink()
