# SPDX-License-Identifier: Apache-2.0
"""Kinds of documents, digests that are paths, and whiteouts: tables of what must not be mistaken for what.

facts: GHSA-xmmx-7jpf-fx42 (CVE-2021-41190), CVE-2024-3727; image-spec, descriptor.md and layer.md.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.layouts import (
    CONFIG,
    INDEX,
    LAYER_TYPES,
    MANIFEST,
    Image,
    Layer,
    as_json,
    descriptor,
    digest,
    directory,
    file,
    image,
    symlink,
    write_files,
)
from tests.testbed.places import Place
from tests.testbed.unpacking import Unpacking

GOOD = image(file(b"a", b"1"))
DOCKER = "application/vnd.docker.distribution.manifest"
MANIFESTS = (MANIFEST, f"{DOCKER}.v2+json")
INDEXES = (INDEX, f"{DOCKER}.list.v2+json")
TYPES = (*MANIFESTS, *INDEXES, CONFIG, f"{DOCKER}.v1+json", "", "text/plain")
FIELDS = ("manifest", "index", "both", "neither", "manifest and fsLayers")


def document(fields: str, inner: dict[str, Any], leaf: dict[str, Any]) -> dict[str, Any]:
    """A document with the fields of a manifest, an index, both or neither."""
    made: dict[str, Any] = {"schemaVersion": 2}
    if fields not in ("neither", "index"):
        made |= {"config": inner["config"], "layers": inner["layers"]}
    if fields in ("index", "both"):
        made |= {"manifests": [leaf]}
    if "fsLayers" in fields:
        made |= {"fsLayers": [], "history": []}
    return made


@pytest.mark.parametrize("body", [None, *TYPES])
@pytest.mark.parametrize("named", TYPES)
def test_kinds_of_documents(plain_place: Place, named: str, body: str | None) -> None:
    """All pairs of the type in the descriptor and the one in the body, with every set of fields."""
    manifest, blobs = GOOD.blobs()
    leaf = descriptor(manifest, MANIFEST)
    for number, fields in enumerate(FIELDS):
        made = document(fields, json.loads(manifest), leaf)
        raw = as_json(made if body is None else made | {"mediaType": body})
        entry = descriptor(raw, named)
        layout = plain_place.account.home / f"layout{number}"
        write_files(layout, {"schemaVersion": 2, "manifests": [entry]}, blobs | {digest(raw): raw})
        agrees = body in (None, "", named)
        good = agrees and (named, fields) in {
            *itertools.product(MANIFESTS, ["manifest"]),
            *itertools.product(INDEXES, ["index"]),
        }
        if good:
            assert set(plain_place.tree(f"oci:{layout}")) == {"a"}
            plain_place.target.rename(plain_place.account.home / f"done{number}")
        else:
            assert plain_place.refused(f"oci:{layout}").slug in ("image-invalid", "image-platform"), fields


# --------------------------------------------------------------------------- digests

PATHS = ["sha256:../../../etc/passwd", "sha256:" + "/" * 64, "../canary/file", "sha256:" + "." * 64]


@pytest.mark.parametrize("text", [*PATHS, "sha1:" + "0" * 40, "md5:" + "0" * 32, "sha256:" + "0" * 63 + "\n"])
def test_digests_on_the_command_line(unpacking: Unpacking, text: str) -> None:
    ended = unpacking.run(f"{unpacking.layout(GOOD)}@{text}")
    assert ended.status == 125
    assert ended.slug in ("image-reference", "image-not-found"), ended.said


@pytest.mark.parametrize("where", ["index", "config", "layer", "diff_id"])
@pytest.mark.parametrize("text", PATHS)
def test_digests_as_paths(unpacking: Unpacking, where: str, text: str) -> None:
    def bend_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
        if where in ("config", "layer"):
            (manifest["config"] if where == "config" else manifest["layers"][0])["digest"] = text
        return manifest

    def bend_config(config: dict[str, Any]) -> dict[str, Any]:
        if where == "diff_id":
            config["rootfs"]["diff_ids"] = [text]
        return config

    def bend_index(index: dict[str, Any]) -> dict[str, Any]:
        if where == "index":
            index["manifests"][0]["digest"] = text
        return index

    bent = Image(GOOD.layers, bend_manifest=bend_manifest, bend_config=bend_config)
    assert unpacking.refused(unpacking.layout(bent, bend_index=bend_index)).slug == "image-invalid"


def test_sha512_everywhere(unpacking: Unpacking) -> None:
    """Blobs, configuration and manifest named by sha512, and one bit of the layer changed."""

    def named(data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest(data, "sha512"), "size": len(data)}

    layer = Layer(file(b"a", b"1"), "zstd")
    rootfs = {"type": "layers", "diff_ids": [digest(layer.plain, "sha512")]}
    config = as_json({"os": "linux", "architecture": "amd64", "rootfs": rootfs})
    layers = [named(layer.packed, LAYER_TYPES["zstd"])]
    manifest = as_json({"schemaVersion": 2, "config": named(config, CONFIG), "layers": layers})
    path = unpacking.inputs / "sha512"
    write_files(path, {"schemaVersion": 2, "manifests": [named(manifest, MANIFEST)]}, {})
    (path / "blobs" / "sha512").mkdir(mode=0o755)
    for blob in (layer.packed, config, manifest):
        (path / "blobs" / "sha512" / hashlib.sha512(blob).hexdigest()).write_bytes(blob)
    assert set(unpacking.tree(f"oci:{path}")) == {"a"}
    unpacking.target.rename(unpacking.inputs / "done")
    blob_path = Path(path / "blobs" / "sha512" / hashlib.sha512(layer.packed).hexdigest())
    blob_path.write_bytes(bytes([layer.packed[0]]) + bytes([layer.packed[1] ^ 1]) + layer.packed[2:])
    assert unpacking.refused(f"oci:{path}").slug == "image-digest"


# --------------------------------------------------------------------------- whiteouts

LOWER = {
    "file": file(b"p/x", b"1"),
    "directory": directory(b"p/x"),
    "full directory": directory(b"p/x") + directory(b"p/x/y") + file(b"p/x/y/z", b"1"),
    "symlink": symlink(b"p/x", b"keep"),
    "symlink to a directory": symlink(b"p/x", b"../q"),
    "absent": b"",
}
BASE = directory(b"p") + file(b"p/keep", b"1") + directory(b"q") + file(b"q/f", b"1") + symlink(b"way", b"p")
REST = {"p", "q", "q/f", "way"}
FORMS = {"by name": b".wh.x", "opaque": b".wh..wh..opq"}


@pytest.mark.parametrize("way", [b"p", b"way", b"/./p//"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LOWER)
def test_whiteout_table(plain_place: Place, kind: str, form: str, order: str, way: bytes) -> None:
    """What a lower layer has is hidden, the siblings of the whiteout's own layer never are."""
    mark = file(way + b"/" + FORMS[form])
    sibling = file(b"p/new", b"2") + directory(b"p/dir") + file(b"p/dir/f", b"2")
    upper = mark + sibling if order == "before" else sibling + mark
    tree = plain_place.tree(plain_place.layout(image(BASE + LOWER[kind], upper)))
    assert set(tree) == REST | {"p/new", "p/dir", "p/dir/f"} | ({"p/keep"} if form == "by name" else set())


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("upper", LOWER)
@pytest.mark.parametrize("lower", LOWER)
def test_whiteout_of_what_is_made_anew(plain_place: Place, lower: str, upper: str, order: str) -> None:
    """The whiteout hides the lower thing, and nothing of what its own layer puts there."""
    mark, made = file(b"p/.wh.x"), LOWER[upper]
    tree = plain_place.tree(
        plain_place.layout(image(BASE + LOWER[lower], mark + made if order == "before" else made + mark))
    )
    expected = plain_names(made)
    assert set(tree) == REST | {"p/keep"} | expected
    assert tree["q/f"][1] == b"1"


def plain_names(tar: bytes) -> set[str]:
    """The names of a made entry."""
    found = {key for key, value in LOWER.items() if value == tar}
    names = {"absent": set(), "full directory": {"p/x", "p/x/y", "p/x/y/z"}}
    return names.get(found.pop(), {"p/x"})
