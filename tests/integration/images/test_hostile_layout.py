# SPDX-License-Identifier: Apache-2.0
"""Layouts and documents that lie: digests, sizes, types of files, kinds of documents, JSON."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import ImageInvalid
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.stores.destination import unpack_to
from hpcpod.log import Silent
from tests.testbed.layouts import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Image,
    as_json,
    descriptor,
    digest,
    file,
    image,
    write_archive,
    write_files,
)
from tests.testbed.places import AMD64, Place

GOOD = image(file(b"a", b"1"), file(b"b", b"2"))
FILES = ("manifest", "config", "layer 0", "layer 1")


def layout_of(place: Place) -> Path:
    return place.account.home / "layout"


def blob_path(place: Place, which: str) -> Path:
    """Where a blob of GOOD lies."""
    manifest, _ = GOOD.blobs()
    documents = json.loads(manifest)
    names = {
        "manifest": digest(manifest),
        "config": documents["config"]["digest"],
        "layer 0": documents["layers"][0]["digest"],
        "layer 1": documents["layers"][1]["digest"],
    }
    return layout_of(place) / "blobs" / "sha256" / names[which].partition(":")[2]


TAMPER: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "a byte more": lambda data: data + b"\n",
    "a byte less": lambda data: data[:-1],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
@pytest.mark.parametrize("how", TAMPER)
@pytest.mark.parametrize("which", FILES)
def test_changed_blobs(plain_place: Place, which: str, how: str, archive: bool) -> None:
    reference = plain_place.layout(GOOD)
    path = blob_path(plain_place, which)
    path.write_bytes(TAMPER[how](path.read_bytes()))
    if archive:
        made = write_archive(plain_place.account.home / "image.tar", layout_of(plain_place))
        reference = f"oci-archive:{made}"
    assert plain_place.refused(reference).slug == "image-digest"


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize("which", ["config", "layer 0", "layer 1"])
def test_sizes_that_lie(plain_place: Place, which: str, change: int) -> None:
    def bend(manifest: dict[str, Any]) -> dict[str, Any]:
        entry = manifest["config"] if which == "config" else manifest["layers"][int(which[-1])]
        entry["size"] += change
        return manifest

    reference = plain_place.layout(Image(GOOD.layers, bend_manifest=bend))
    assert plain_place.refused(reference).slug == "image-digest"


def bend_diff_ids(change: Callable[[list[str]], list[str]]) -> Image:
    def bend(config: dict[str, Any]) -> dict[str, Any]:
        config["rootfs"]["diff_ids"] = change(config["rootfs"]["diff_ids"])
        return config

    return Image(GOOD.layers, bend_config=bend)


DIFF_IDS: dict[str, Callable[[list[str]], list[str]]] = {
    "another": lambda ids: [digest(b"x"), ids[1]],
    "swapped": lambda ids: ids[::-1],
    "too few": lambda ids: ids[:1],
    "too many": lambda ids: [*ids, ids[0]],
    "none": lambda ids: [],
}


@pytest.mark.parametrize("case", DIFF_IDS)
def test_wrong_diff_ids(plain_place: Place, case: str) -> None:
    plain_place.refused(plain_place.layout(bend_diff_ids(DIFF_IDS[case])))


def test_other_algorithms(plain_place: Place) -> None:
    sha512 = [digest(layer.plain, "sha512") for layer in GOOD.layers]
    assert set(plain_place.tree(plain_place.layout(bend_diff_ids(lambda ids: sha512)))) == {"a", "b"}


BAD_DIGESTS = [
    "",
    "sha256",
    "sha256:",
    "sha256:../../../etc/passwd",
    "../" * 8,
    digest(b"")[:-1],
    digest(b"") + "\n",
    digest(b"").upper(),
    digest(b"") + "/x",
    "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "md5:d41d8cd98f00b204e9800998ecf8427e",
    "sha384:" + "0" * 96,
    "sha512:" + "0" * 64,
]


@pytest.mark.parametrize("bad", BAD_DIGESTS)
@pytest.mark.parametrize("where", ["index", "config", "layer", "diff_id"])
def test_bad_digests(plain_place: Place, where: str, bad: str) -> None:
    def bend_index(index: dict[str, Any]) -> dict[str, Any]:
        if where == "index":
            index["manifests"][0]["digest"] = bad
        return index

    def bend_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
        if where in ("config", "layer"):
            (manifest["config"] if where == "config" else manifest["layers"][0])["digest"] = bad
        return manifest

    def bend_config(config: dict[str, Any]) -> dict[str, Any]:
        if where == "diff_id":
            config["rootfs"]["diff_ids"][0] = bad
        return config

    bent = Image(GOOD.layers, bend_config=bend_config, bend_manifest=bend_manifest)
    assert plain_place.refused(plain_place.layout(bent, bend_index=bend_index)).slug == "image-invalid"


# --------------------------------------------------------------------------- files of the layout


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)
        listener.bind(path.name)
        os.chdir(here)


REPLACE: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "link to a copy": lambda path: path.symlink_to(path.with_name("copy")),
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
}
PARTS = ("oci-layout", "index.json", *FILES)


@pytest.mark.parametrize("how", REPLACE)
@pytest.mark.parametrize("part", PARTS)
def test_layout_of_other_files(plain_place: Place, part: str, how: str) -> None:
    reference = plain_place.layout(GOOD)
    path = blob_path(plain_place, part) if part in FILES else layout_of(plain_place) / part
    path.rename(path.with_name("copy"))
    REPLACE[how](path)
    outcome = plain_place.refused(reference)
    assert outcome.seconds < 5
    assert outcome.slug == ("image-not-found" if how == "nothing" else "image-invalid")


@pytest.mark.needs("root")
@pytest.mark.parametrize("part", PARTS)
def test_layout_of_devices(place: Place, part: str) -> None:
    reference = place.layout(GOOD)
    path = blob_path(place, part) if part in FILES else layout_of(place) / part
    path.unlink()
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
    assert place.refused(reference).slug == "image-invalid"


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256"])
def test_directories_that_are_links(plain_place: Place, part: str) -> None:
    reference = plain_place.layout(GOOD)
    path = layout_of(plain_place) / part
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    outcome = plain_place.refused(reference)
    assert (outcome.slug, outcome.message) == ("image-invalid", f"{path}: is a symbolic link")


@pytest.mark.parametrize("part", ["index.json", "layer 0"])
def test_files_that_are_links(plain_place: Place, part: str) -> None:
    reference = plain_place.layout(GOOD)
    path = blob_path(plain_place, part) if part in FILES else layout_of(plain_place) / part
    path.rename(path.with_name("copy"))
    path.symlink_to("copy")
    with pytest.raises(ImageInvalid, match="is a symbolic link") as caught:
        unpack_to(parse_reference(reference), str(plain_place.target), AMD64, DEFAULT_LIMITS, Silent())
    assert str(path) in caught.value.message
    assert "skopeo copy" in (caught.value.hint or "")


MARKS = [b"", b"{}", b"[]", b'{"imageLayoutVersion": "2.0.0"}', b'{"imageLayoutVersion": 1}', b"x" * 5000]


@pytest.mark.parametrize("mark", MARKS)
def test_layout_versions(plain_place: Place, mark: bytes) -> None:
    reference = plain_place.layout(GOOD)
    (layout_of(plain_place) / "oci-layout").write_bytes(mark)
    assert plain_place.refused(reference).slug == "image-invalid"


@pytest.mark.parametrize("path", ["missing", "layout/index.json", "canary"])
def test_what_is_no_layout(plain_place: Place, path: str) -> None:
    plain_place.layout(GOOD)
    outcome = plain_place.unpack(f"oci:{plain_place.account.home / path}")
    assert outcome.slug == "image-not-found"


# --------------------------------------------------------------------------- kinds of documents


def drop(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no version": lambda m: drop(m, "schemaVersion"),
    "version 1": lambda m: m | {"schemaVersion": 1},
    "version as text": lambda m: m | {"schemaVersion": "2"},
    "version true": lambda m: m | {"schemaVersion": True},
    "is an index by type": lambda m: m | {"mediaType": INDEX},
    "has manifests": lambda m: m | {"manifests": []},
    "has fsLayers": lambda m: m | {"fsLayers": []},
    "no config": lambda m: drop(m, "config"),
    "config a list": lambda m: m | {"config": []},
    "config of another kind": lambda m: (
        m | {"config": m["config"] | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}
    ),
    "no layers": lambda m: drop(m, "layers"),
    "layers an object": lambda m: m | {"layers": {}},
    "layers of numbers": lambda m: m | {"layers": [1, 2]},
    "layer of another kind": lambda m: (
        m | {"layers": [m["layers"][0] | {"mediaType": f"{LAYER}+xz"}, m["layers"][1]]}
    ),
    "encrypted": lambda m: (
        m | {"layers": [m["layers"][0] | {"mediaType": f"{LAYER}+gzip+encrypted"}, m["layers"][1]]}
    ),
    "negative size": lambda m: m | {"config": m["config"] | {"size": -1}},
    "size as text": lambda m: m | {"config": m["config"] | {"size": "1"}},
    "size as fraction": lambda m: m | {"config": m["config"] | {"size": 1.5}},
    "size true": lambda m: m | {"config": m["config"] | {"size": True}},
    "size too large": lambda m: m | {"config": m["config"] | {"size": 1 << 63}},
    "huge config": lambda m: m | {"config": m["config"] | {"size": 1 << 40}},
    "too many layers": lambda m: m | {"layers": m["layers"] * 300},
    "a list": lambda m: [m],
    "text": lambda m: json.dumps("x").encode(),
    "nothing": lambda m: b"",
    "duplicate key": lambda m: as_json(m)[:-1] + b', "layers": []}',
    "duplicate by case": lambda m: as_json(m)[:-1] + b', "Layers": []}',
    "duplicate by folding": lambda m: (
        as_json(m)[:-1] + '", "layer\u017f": []}'.encode().replace(b'"', b"", 1)
    ),
    "rubbish behind": lambda m: as_json(m) + b"{}",
    "NaN": lambda m: as_json(m)[:-1] + b', "x": NaN}',
    "Infinity": lambda m: as_json(m)[:-1] + b', "x": -Infinity}',
    "long number": lambda m: as_json(m)[:-1] + b', "x": ' + b"9" * 5000 + b"}",
    "deep": lambda m: as_json(m)[:-1] + b', "x": ' + b"[" * 100 + b"]" * 100 + b"}",
    "very deep": lambda m: as_json(m)[:-1] + b', "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "not UTF-8": lambda m: as_json(m)[:-1] + b', "x": "\xff"}',
    "byte order mark": lambda m: b"\xef\xbb\xbf" + as_json(m),
    "UTF-16": lambda m: json.dumps(m).encode("utf-16"),
    "too long": lambda m: as_json(m) + b" " * (4 << 20),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_bad_manifests(plain_place: Place, case: str) -> None:
    outcome = plain_place.refused(plain_place.layout(Image(GOOD.layers, bend_manifest=MANIFESTS[case])))
    assert outcome.slug in ("image-invalid", "image-limit")
    assert outcome.seconds < 10


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no os": lambda c: drop(c, "os"),
    "os a number": lambda c: c | {"os": 1},
    "no architecture": lambda c: drop(c, "architecture"),
    "no rootfs": lambda c: drop(c, "rootfs"),
    "unknown rootfs": lambda c: c | {"rootfs": c["rootfs"] | {"type": "zip"}},
    "diff_ids of numbers": lambda c: c | {"rootfs": c["rootfs"] | {"diff_ids": [1, 2]}},
    "Env a text": lambda c: c | {"config": {"Env": "A=1"}},
    "Env without equals": lambda c: c | {"config": {"Env": ["A"]}},
    "Env without a name": lambda c: c | {"config": {"Env": ["=1"]}},
    "Env with NUL": lambda c: c | {"config": {"Env": ["A=\0"]}},
    "Env with a surrogate": lambda c: c | {"config": {"Env": ["A=\ud800"]}},
    "Cmd a text": lambda c: c | {"config": {"Cmd": "sh"}},
    "Cmd of numbers": lambda c: c | {"config": {"Cmd": [1]}},
    "WorkingDir a list": lambda c: c | {"config": {"WorkingDir": ["/"]}},
    "Labels a list": lambda c: c | {"config": {"Labels": ["x"]}},
    "Volumes a list": lambda c: c | {"config": {"Volumes": ["/x"]}},
    "config a list": lambda c: c | {"config": []},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs(plain_place: Place, case: str) -> None:
    reference = plain_place.layout(Image(GOOD.layers, bend_config=CONFIGS[case]))
    assert plain_place.refused(reference).slug == "image-invalid"


def test_nulls_are_absent(plain_place: Place) -> None:
    nulls = {
        "Env": None,
        "Cmd": None,
        "Entrypoint": None,
        "Labels": None,
        "Volumes": None,
        "WorkingDir": None,
    }
    plain_place.tree(plain_place.layout(Image(GOOD.layers, config=nulls)))


INDEXES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no version": lambda i: drop(i, "schemaVersion"),
    "is a manifest by type": lambda i: i | {"mediaType": MANIFEST},
    "has layers": lambda i: i | {"layers": []},
    "has config": lambda i: i | {"config": {}},
    "no manifests": lambda i: drop(i, "manifests"),
    "empty": lambda i: i | {"manifests": []},
    "entry is a config": lambda i: i | {"manifests": [i["manifests"][0] | {"mediaType": CONFIG}]},
    "manifest said to be an index": lambda i: i | {"manifests": [i["manifests"][0] | {"mediaType": INDEX}]},
    "platform a text": lambda i: i | {"manifests": [i["manifests"][0] | {"platform": "linux/amd64"}]},
    "too many": lambda i: i | {"manifests": i["manifests"] * 5000},
    "annotations a list": lambda i: i | {"manifests": [i["manifests"][0] | {"annotations": ["x"]}]},
}


@pytest.mark.parametrize("case", INDEXES)
def test_bad_indexes(plain_place: Place, case: str) -> None:
    plain_place.refused(plain_place.layout(GOOD, bend_index=INDEXES[case]))


def nested(depth: int, width: int, leaf: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An index of indexes: each level names the next `width` times."""
    blobs: dict[str, bytes] = {}
    entry = leaf
    for _ in range(depth):
        raw = as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] * width})
        blobs[digest(raw)] = raw
        entry = descriptor(raw, INDEX)
    return {"schemaVersion": 2, "manifests": [entry]}, blobs


def write_nested(place: Place, depth: int, width: int, **platform: str) -> str:
    manifest, blobs = GOOD.blobs()
    leaf = descriptor(manifest, MANIFEST, platform={"os": "linux", "architecture": "amd64"} | platform)
    index, more = nested(depth, width, leaf)
    write_files(layout_of(place), index, blobs | more)
    return f"oci:{layout_of(place)}"


def test_nested_indexes(plain_place: Place) -> None:
    assert set(plain_place.tree(write_nested(plain_place, 3, 2))) == {"a", "b"}


def test_deep_indexes_are_refused(plain_place: Place) -> None:
    assert plain_place.refused(write_nested(plain_place, 6, 1)).slug == "image-limit"


def test_fan_out_is_walked_once(plain_place: Place) -> None:
    outcome = plain_place.refused(write_nested(plain_place, 4, 50, architecture="s390x"))
    assert outcome.slug == "image-platform"
    assert outcome.seconds < 5
