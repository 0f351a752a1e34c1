# SPDX-License-Identifier: Apache-2.0
"""Index, manifest and configuration: any JSON, with digests and sizes that fit where the input says so.

An input is several documents, separated by zero bytes, index.json first.  ``@N`` in one of them becomes the
digest of the N-th, ``#N`` its size, so that changed documents are still found by those that name them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from hpcpod.errors import HpcpodError, ImageNotFound
from hpcpod.images.sources.layout import Blob, OpenLayout
from hpcpod.images.sources.reference import Reference, is_digest
from hpcpod.images.sources.resolve import find_manifest
from hpcpod.images.sources.walk import Documents, read_documents
from hpcpod.model import FileStamp, Platform
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.testbed.layouts import CONFIG, INDEX, LAYER, MANIFEST

AMD64 = Platform("linux", "amd64")
MARK = b'{"imageLayoutVersion": "1.0.0"}'
_NAMED = re.compile(rb"([@#])([0-9])")
OPENED = SMALL.documents * 2 + 8
"""Files that a walk may open: each index twice (to find, and to say what there is), and a few."""


class Memory:
    """A layout of files in memory, which counts what is opened."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.opened = 0

    @property
    def stamp(self) -> FileStamp:
        """Of no file."""
        return FileStamp("", 0, 0, 0, 0, 0)

    def open_file(self, name: str) -> Blob:
        """A file."""
        self.opened += 1
        if name not in self.files:
            raise ImageNotFound(f"{name}: not there")
        fd = os.memfd_create("blob")
        os.write(fd, self.files[name])
        return Blob(fd, 0, len(self.files[name]))

    def close(self) -> None:
        """Nothing to close."""


def layout_of(data: bytes) -> Memory:
    """The documents of an input, the last first: they can only name what comes behind them."""
    documents = data.split(b"\0")[:10]
    digests: dict[bytes, bytes] = {}
    files = {"oci-layout": MARK}
    for number in range(len(documents) - 1, -1, -1):
        filled = _NAMED.sub(lambda match: digests.get(match[0], match[0]), documents[number])
        digest = hashlib.sha256(filled).hexdigest()
        digests[b"@%d" % number] = b"sha256:" + digest.encode()
        digests[b"#%d" % number] = b"%d" % len(filled)
        files[f"blobs/sha256/{digest}"] = filled
    files["index.json"] = filled
    return Memory(files)


def check(found: Documents, files: dict[str, bytes]) -> None:
    """What must hold of documents that were accepted.  Raises Broken."""
    config = found.config.config
    words = [*config.entrypoint, *config.cmd, config.workdir, config.user, *config.volumes]
    words += [word for pair in (*config.env, *config.labels) for word in pair]
    if any("\0" in word or word != word.encode().decode() for word in words):
        raise Broken("a word that no program can be given")
    if not all(name and "=" not in name for name, _ in config.env):
        raise Broken(f"a variable without a name: {config.env}")
    for layer in found.layers:
        if not is_digest(layer.blob.digest) or not is_digest(layer.diff_id) or layer.blob.size < 0:
            raise Broken(f"layer {layer}")
    if len(found.layers) > SMALL.layers:
        raise Broken(f"{len(found.layers)} layers")
    if files.get(f"blobs/{found.descriptor.digest.replace(':', '/')}") != found.manifest_bytes:
        raise Broken("another manifest than the one named")
    manifest = json.loads(found.manifest_bytes)
    if "manifests" in manifest and manifest["manifests"] is not None:
        raise Broken("a manifest that is an index as well")
    if [layer["digest"] for layer in manifest["layers"]] != [layer.blob.digest for layer in found.layers]:
        raise Broken("other layers than Python's json reads")


def run(data: bytes) -> None:
    """Find, read and check; the tag ``t`` where an odd number of documents is given."""
    files = layout_of(data)
    reference = Reference("oci", "x", "t" if data.count(b"\0") % 2 else "")
    try:
        with OpenLayout(files, "oci:x", SMALL) as layout:
            descriptor = find_manifest(layout, reference, AMD64, SMALL)
            found = read_documents(layout, descriptor, AMD64, SMALL)
    except HpcpodError as error:
        refused(error)
        found = None
    if files.opened > OPENED:
        raise Broken(f"{files.opened} files opened")
    if found is not None:
        check(found, files.files)


def entry(number: int, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"@{number}", "size": number, **more}


def pack(*documents: object) -> bytes:
    """Documents as an input; sizes that were numbers of documents become references."""
    raw = (json.dumps(document, separators=(",", ":")).encode() for document in documents)
    return b"\0".join(re.sub(rb'"size":([0-9])\b', rb'"size":#\1', each) for each in raw)


DIFF_ID = "sha256:" + "a" * 64
LAYERS = [{"mediaType": f"{LAYER}+gzip", "digest": DIFF_ID, "size": 10}]
CONFIGURATION = {
    "os": "linux",
    "architecture": "amd64",
    "config": {"Env": ["A=1"], "Cmd": ["sh"], "Labels": {"a": "b"}, "Volumes": {"/x": {}}, "User": "1:1"},
    "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]},
}


def manifest(config: int) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry(config, CONFIG), "layers": LAYERS}


def index(*entries: object) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}


NAMED = {"annotations": {"org.opencontainers.image.ref.name": "t"}}
PLATFORM = {"platform": {"os": "linux", "architecture": "amd64"}}
OTHER = {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}

FIELDS = (
    "schemaVersion mediaType manifests layers config digest size platform os architecture variant "
    "annotations rootfs type diff_ids Env Cmd Entrypoint Labels Volumes WorkingDir User fsLayers"
)
QUOTED = tuple(f'"{word}"'.encode() for word in (*FIELDS.split(), INDEX, MANIFEST, CONFIG, LAYER))
VALUES = (
    b"@1",
    b"#1",
    b"\0",
    b"null",
    b"true",
    b"NaN",
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"-0",
    b"[[",
    b"{}",
)

TARGET = Target(
    run=run,
    seeds={
        "plain": pack(index(entry(1, MANIFEST)), manifest(2), CONFIGURATION),
        "tagged": pack(index(entry(1, MANIFEST, **NAMED)), manifest(2), CONFIGURATION, {}),
        "nested": pack(
            index(entry(1, INDEX)),
            index(entry(2, MANIFEST, **OTHER), entry(2, MANIFEST, **PLATFORM)),
            manifest(3),
            CONFIGURATION,
        ),
        "deep": pack(
            index(entry(1, INDEX), entry(1, INDEX)),
            index(entry(2, INDEX), entry(2, INDEX)),
            index(entry(3, INDEX), entry(3, INDEX)),
            index(entry(4, MANIFEST, **OTHER)),
            manifest(5),
            CONFIGURATION,
        ),
        "artifact": pack(index(entry(1, MANIFEST)), manifest(2) | {"config": entry(2, "x/y")}, {}),
    },
    longest=4096,
    words=QUOTED + VALUES,
    runs=3000,
)
