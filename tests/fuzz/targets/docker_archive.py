# SPDX-License-Identifier: Apache-2.0
"""Files of ``docker save``: manifest, configuration and layers are read, and unpacked beside canaries."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.docker_archive import DockerArchiveSource
from hpcpod.images.sources.reference import Reference
from hpcpod.log import Silent
from hpcpod.model import Platform
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.testbed.layouts import file, hardlink, symlink

AMD64 = Platform("linux", "amd64")
scratch = functools.cache(Scratch)


def check(path: str) -> None:
    """Unpack; the digest is that of the configuration.  Raises HpcpodError."""
    with DockerArchiveSource(Reference("docker-archive", path), SMALL) as source:
        described = source.describe(AMD64)
        if described.digest != f"sha256:{hashlib.sha256(described.config_bytes).hexdigest()}":
            raise Broken(f"{described.digest} is not the digest of the configuration")
        source.unpack(scratch().make(), Silent())
    scratch().check_tree(SMALL)


def run(data: bytes) -> None:
    """A file."""
    fd = os.memfd_create("image")
    try:
        os.write(fd, data)
        check(f"/proc/self/fd/{fd}")
    except HpcpodError as error:
        refused(error)
    finally:
        os.close(fd)
    scratch().check_outside()


LAYER = file(b"a", b"x") + bytes(1024)
CONFIG = json.dumps(
    {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(LAYER).hexdigest()}"]},
    }
).encode()


def saved(layer: str, *members: bytes, config: str = "c") -> bytes:
    """An archive with a configuration, these members, and a manifest that names one layer."""
    manifest = json.dumps([{"Config": config, "RepoTags": ["me/my:1"], "Layers": [layer]}]).encode()
    return b"".join((file(config.encode(), CONFIG), *members, file(b"manifest.json", manifest), bytes(1024)))


BLOB = f"blobs/sha256/{hashlib.sha256(LAYER).hexdigest()}"
TARGET = Target(
    run=run,
    seeds={
        "plain": saved("l.tar", file(b"l.tar", LAYER)),
        "compressed": saved("l.tar", file(b"l.tar", gzip.compress(LAYER, mtime=0))),
        "blob": saved(BLOB, file(BLOB.encode(), LAYER)),
        "symbolic link": saved("d/l", file(b"l.tar", LAYER), symlink(b"d/l", b"../l.tar")),
        "hard link": saved("l", file(b"l.tar", LAYER), hardlink(b"l", b"l.tar")),
        "links": saved("l", symlink(b"l", b"m"), symlink(b"m", b"l")),
        "nothing": bytes(1024),
    },
    longest=8192,
    words=(b"manifest.json", b'"Config"', b'"Layers"', b'"RepoTags"', b"../", b"blobs/sha256/"),
)
