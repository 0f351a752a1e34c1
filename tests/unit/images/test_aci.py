# SPDX-License-Identifier: Apache-2.0
"""App Container Images: manifests and what may be in the tar; any bytes are read or refused."""

from __future__ import annotations

import bz2
import json
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.aci import TITLE, image_config, parse_aci_manifest, platform_for
from hpcpod.images.sources.acistream import AciScan, AciTree
from hpcpod.images.sources.manifest import Compression, parse_config
from hpcpod.images.unpacking.decompress import decompress
from hpcpod.images.unpacking.tarstream import ByteStream, Entry
from hpcpod.model import Platform
from tests.testbed.acis import MANIFEST, aci, identifiers, image_id, manifests, trees
from tests.testbed.layouts import END, directory, file, hardlink, header, symlink

HERE = Platform("linux", "amd64")


def parse(manifest: Any) -> Any:
    raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return parse_aci_manifest(raw, "x", DEFAULT_LIMITS)


def stream(tar: bytes, step: int = 1 << 20) -> ByteStream:
    return ByteStream(tar[at : at + step] for at in range(0, len(tar), step))


def scan(tar: bytes, limits: Limits = DEFAULT_LIMITS) -> AciScan:
    found = AciScan(stream(tar), limits)
    found.read()
    return found


def entries(tar: bytes, whitelist: frozenset[bytes] | None = None) -> list[Entry]:
    return list(AciTree(stream(tar), DEFAULT_LIMITS, whitelist))


# --------------------------------------------------------------------------- manifests


def test_the_specification_s_example() -> None:
    manifest = parse(MANIFEST)
    assert (manifest.name, manifest.version, manifest.whitelist) == ("example.com/solver", "1.0.0", None)
    platform = platform_for(manifest, Platform("linux", "arm64"))
    assert platform == HERE
    raw = image_config(manifest, platform, image_id(b""))
    document = parse_config(raw, "x", DEFAULT_LIMITS)
    assert (document.platform, document.diff_ids) == (HERE, (image_id(b""),))
    config = document.config
    assert config.entrypoint == ("/bin/solver", "--quiet")
    assert (config.user, config.workdir, config.volumes) == ("100:300", "/opt/work", ("/var/lib/work",))
    assert config.env == (("SOLVER_DEBUG", "true"),)
    assert {(TITLE, "example.com/solver"), ("version", "1.0.0")} < set(config.labels)


@given(manifests)
def test_every_valid_manifest_becomes_a_configuration(manifest: dict[str, Any]) -> None:
    found = parse(manifest)
    config = parse_config(image_config(found, HERE, image_id(b"")), "x", DEFAULT_LIMITS).config
    app = manifest.get("app", {})
    assert list(config.entrypoint) == app.get("exec", [])
    assert [{"name": n, "value": v} for n, v in config.env] == app.get("environment", [])
    assert config.workdir == app.get("workingDirectory", "")
    listed = {path.strip("/").encode() for path in manifest.get("pathWhitelist", [])}
    assert found.whitelist == (frozenset(listed) or None)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, "linux/ppc64le"),
        ({"os": "linux"}, "linux/ppc64le"),
        ({"arch": "amd64"}, "linux/ppc64le"),  # aci.md: meaningful only if os is provided
        ({"os": "linux", "arch": "aarch64"}, "linux/arm64"),
        ({"os": "linux", "arch": "armv7l"}, "linux/arm/v7"),
        ({"os": "freebsd", "arch": "amd64"}, "freebsd/amd64"),
    ],
)
def test_platforms(labels: dict[str, str], expected: str) -> None:
    listed = [{"name": name, "value": value} for name, value in labels.items()]
    manifest = parse(MANIFEST | {"labels": listed})
    assert str(platform_for(manifest, Platform("linux", "ppc64le"))) == expected


def app(**changes: Any) -> dict[str, Any]:
    return MANIFEST | {"app": MANIFEST["app"] | changes}


BAD_MANIFESTS: dict[str, Any] = {
    "kind": MANIFEST | {"acKind": "PodManifest"},
    "no kind": {key: value for key, value in MANIFEST.items() if key != "acKind"},
    "no version": {key: value for key, value in MANIFEST.items() if key != "acVersion"},
    "version": MANIFEST | {"acVersion": "1"},
    "version of letters": MANIFEST | {"acVersion": "1.x.0"},
    "no name": {key: value for key, value in MANIFEST.items() if key != "name"},
    "name with capitals": MANIFEST | {"name": "Example.com/x"},
    "name ends in a separator": MANIFEST | {"name": "x/"},
    "name with two separators": MANIFEST | {"name": "x//y"},
    "name with an escape": MANIFEST | {"name": "x\x1b[0m"},
    "arch": MANIFEST | {"labels": [{"name": "os", "value": "linux"}, {"name": "arch", "value": "vax"}]},
    "label name": MANIFEST | {"labels": [{"name": "name", "value": "x"}]},
    "label twice": MANIFEST | {"labels": [{"name": "x", "value": "1"}, {"name": "x", "value": "2"}]},
    "label without value": MANIFEST | {"labels": [{"name": "x"}]},
    "labels are a map": MANIFEST | {"labels": {"x": "y"}},
    "exec is a string": app(exec="/bin/sh"),
    "no user": app(user=""),
    "no group": app(group=None),
    "relative workdir": app(workingDirectory="work"),
    "variable": app(environment=[{"name": "A=B", "value": ""}]),
    "variable twice": app(environment=[{"name": "A", "value": ""}, {"name": "A", "value": "1"}]),
    "variable with NUL": app(environment=[{"name": "A", "value": "\0"}]),
    "relative mount point": app(mountPoints=[{"name": "a", "path": "x"}]),
    "whitelist relative": MANIFEST | {"pathWhitelist": ["x"]},
    "whitelist upwards": MANIFEST | {"pathWhitelist": ["/a/../../b"]},
    "dependency without name": MANIFEST | {"dependencies": [{}]},
    "key twice": b'{"acKind": "ImageManifest", "acKind": "ImageManifest"}',
    "key in capitals": MANIFEST | {"ACKIND": "x"},
    "list": b"[]",
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_bad_manifests_are_refused(case: str) -> None:
    with pytest.raises(ImageInvalid) as caught:
        parse(BAD_MANIFESTS[case])
    assert caught.value.message.isprintable()


@given(identifiers, st.sampled_from("-._~/"))
def test_identifiers(name: str, separator: str) -> None:
    assert parse(MANIFEST | {"name": name}).name == name
    for bad in (separator + name, name + separator, f"{name}{separator}{separator}{name}"):
        with pytest.raises(ImageInvalid):
            parse(MANIFEST | {"name": bad})


# --------------------------------------------------------------------------- the tar


@given(trees(), st.booleans(), st.integers(1, 2000))
def test_what_was_written_is_read(tree: tuple[bytes, dict[bytes, bytes]], last: bool, step: int) -> None:
    tar, made = tree
    image = aci(tar, last=last)
    found = scan(image)
    assert parse(found.manifest).name == MANIFEST["name"]
    assert found.data == sum(
        int(b[124:135], 8) for n, b in made.items() if n != b"-hard" and b[156:157] == b"0"
    )
    read = list(AciTree(stream(image, step), DEFAULT_LIMITS, None))
    assert [entry.name for entry in read] == [b".", *made]
    assert all(entry.link in made for entry in read if entry.name == b"-hard")


@pytest.mark.parametrize("top", [b"", directory(b"."), directory(b"./")])
def test_tar_s_ways_to_name_the_top(top: bytes) -> None:
    tree = top + directory(b"./rootfs/") + file(b"./rootfs/a")
    image = tree + file(b"./manifest", json.dumps(MANIFEST).encode()) + END
    assert scan(image).manifest
    assert [entry.name for entry in entries(image)] == [b".", b"a"]


ROOTFS = directory(b"rootfs")
BAD_TARS: dict[str, bytes] = {
    "no manifest": ROOTFS + END,
    "no rootfs": file(b"manifest", json.dumps(MANIFEST).encode()) + END,
    "empty": END,
    "two manifests": aci(file(b"manifest", b"{}") + ROOTFS),
    "two manifests by another name": aci(file(b"./manifest", b"{}") + ROOTFS),
    "a third name": aci(ROOTFS + file(b"other")),
    "a third directory": aci(ROOTFS + directory(b"other")),
    "below the manifest": aci(ROOTFS + file(b"manifest/x")),
    "a name that begins so": aci(ROOTFS + file(b"rootfs2/x")),
    "upwards": aci(ROOTFS + file(b"rootfs/../x")),
    "rootfs is a link": aci(symlink(b"rootfs", b"/")),
    "rootfs is a file": aci(file(b"rootfs")),
    "manifest is a link": aci(ROOTFS + symlink(b"manifest", b"rootfs/x")),
    "manifest is a hard link": aci(ROOTFS + hardlink(b"manifest", b"rootfs/x")),
    "the top is a link": aci(ROOTFS + symlink(b".", b"/")),
    "the top is a file": aci(ROOTFS + file(b"./.")),
    "cut": aci(ROOTFS)[:-1700],
    "data behind the end": aci(ROOTFS) + b"x",
    "hard link to the manifest": aci(ROOTFS + hardlink(b"rootfs/x", b"manifest")),
    "hard link to the root": aci(ROOTFS + hardlink(b"rootfs/x", b"rootfs")),
    "hard link to elsewhere": aci(ROOTFS + hardlink(b"rootfs/x", b"/etc/passwd")),
    "hard link upwards": aci(ROOTFS + hardlink(b"rootfs/x", b"rootfs/../../etc/passwd")),
    "whiteout": aci(ROOTFS + file(b"rootfs/.wh.x")),
    "opaque": aci(ROOTFS + file(b"rootfs/d/.wh..wh..opq")),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_bad_tars_are_refused(case: str) -> None:
    with pytest.raises(ImageInvalid) as caught:
        scan(BAD_TARS[case])
        entries(BAD_TARS[case])
    assert caught.value.message.isprintable()


def test_limits() -> None:
    image = aci(ROOTFS + file(b"rootfs/a") + file(b"rootfs/b"))
    assert scan(image, Limits(entries=4)).manifest
    with pytest.raises(ImageLimitExceeded, match="limit entries 3"):
        scan(image, Limits(entries=3))
    with pytest.raises(ImageLimitExceeded, match="limit json_bytes 16"):
        scan(image, Limits(json_bytes=16))


def test_a_white_list_is_all_there_is() -> None:
    tree = ROOTFS + b"".join(
        (
            directory(b"rootfs/d"),
            file(b"rootfs/d/listed"),
            file(b"rootfs/d/other"),
            directory(b"rootfs/e"),
            file(b"rootfs/e/x"),
            directory(b"rootfs/f"),
            hardlink(b"rootfs/d/hard", b"rootfs/d/listed"),
            symlink(b"rootfs/g", b"d"),
            header(b"rootfs/null", b"3"),
        )
    )
    listed = frozenset({b"d/listed", b"f", b"d/hard"})
    assert [entry.name for entry in entries(aci(tree), listed)] == [b".", b"d", b"d/listed", b"f", b"d/hard"]
    with pytest.raises(ImageInvalid, match="pathWhitelist leaves out"):
        entries(aci(tree), frozenset({b"d/hard"}))


SAMPLE = aci(
    ROOTFS + file(b"rootfs/a", b"x" * 600) + symlink(b"rootfs/l", b"a") + hardlink(b"rootfs/h", b"rootfs/a")
)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_read_or_refused(at: int, change: int) -> None:
    bent = bytearray(SAMPLE)
    bent[at] ^= change
    try:
        parse(scan(bytes(bent)).manifest)
        entries(bytes(bent))
    except HpcpodError as error:
        assert error.message.isprintable()


# --------------------------------------------------------------------------- compression

PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lzma.compress,
}
both = pytest.mark.parametrize("kind", PACKERS)


def unpack(kind: Compression, packed: bytes, step: int = 1 << 16, limits: Limits = DEFAULT_LIMITS) -> bytes:
    chunks: Iterator[bytes] = (packed[at : at + step] for at in range(0, len(packed), step))
    return b"".join(decompress(kind, chunks, limits))


@both
@given(data=st.lists(st.binary(max_size=400), min_size=1, max_size=4), step=st.integers(1, 500))
def test_streams_in_a_row(kind: Compression, data: list[bytes], step: int) -> None:
    packed = b"".join(map(PACKERS[kind], data))
    assert unpack(kind, packed, step) == b"".join(data)
    if kind is Compression.XZ:
        assert unpack(kind, packed + bytes(8), step) == b"".join(data)


@both
def test_large_output_comes_in_bounded_chunks(kind: Compression) -> None:
    packed = PACKERS[kind](bytes(9 << 20))
    sizes = [len(chunk) for chunk in decompress(kind, iter([packed]), DEFAULT_LIMITS)]
    assert sum(sizes) == 9 << 20
    assert max(sizes) <= 4 << 20


@both
def test_broken_streams(kind: Compression) -> None:
    packed = PACKERS[kind](b"some text, " * 50)
    for bad in (packed[:-1], packed[:9], packed + b"x", b"", packed + packed[:7], packed + b"\0"):
        with pytest.raises(ImageInvalid):
            unpack(kind, bad)
    with pytest.raises(ImageLimitExceeded, match="empty_frames"):
        unpack(kind, PACKERS[kind](b"") * 9, limits=Limits(empty_frames=8))


@both
@given(data=st.data())
def test_a_changed_byte_of_a_stream_is_refused_or_harmless(kind: Compression, data: st.DataObject) -> None:
    text = b"some text, " * 50
    packed = bytearray(PACKERS[kind](text))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert unpack(kind, bytes(packed)) == text
    except ImageInvalid as error:
        assert error.message.isprintable()


def test_an_xz_dictionary_may_not_take_all_memory() -> None:
    packed = lzma.compress(b"x", preset=9)
    assert unpack(Compression.XZ, packed) == b"x"
    with pytest.raises(ImageLimitExceeded, match="zstd_window"):
        unpack(Compression.XZ, packed, limits=Limits(zstd_window=1 << 20))
