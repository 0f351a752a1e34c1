# SPDX-License-Identifier: Apache-2.0
"""What planning needs from inside an image, found once, when the image is unpacked, and kept beside it.

Looking for MPI libraries costs milliseconds for which a rank would wait, and a packed image is not mounted
yet when its pod is planned.
"""

from __future__ import annotations

import json
import os

from hpcpod.model import (
    ImageConfig,
    ImageFacts,
    Mpiexec,
    MpiFamily,
    MpiLibrary,
    PmiKind,
)

VERSION = 1
"""Of what is looked for; an entry of another version is made anew."""
_ACCOUNTS_MAX = 1 << 20
"""Bytes read of an image's passwd and group files."""


def summarise(rootfs: str, config: ImageConfig) -> ImageFacts:
    """Look into the unpacked tree.  Raises OSError where rootfs cannot be opened."""
    from hpcpod.images.contents import mpi_scan
    from hpcpod.images.contents.inside import Inside

    environment = dict(config.env)
    search = tuple(
        path
        for name in ("PATH", "LD_LIBRARY_PATH")
        for path in environment.get(name, "").split(":")
        if path.startswith("/")
    )
    libraries = mpi_scan.find_mpi(rootfs, search)
    with Inside(rootfs) as inside:
        texts = [inside.read(path, _ACCOUNTS_MAX) or b"" for path in ("/etc/passwd", "/etc/group")]
    passwd, group = (os.fsdecode(text).replace("\0", "") for text in texts)
    return ImageFacts(passwd, group, libraries, mpi_scan.find_mpiexec(rootfs, libraries, search))


def to_json(facts: ImageFacts) -> bytes:
    """The facts as a document of the store."""
    document = {
        "version": VERSION,
        "passwd": facts.passwd,
        "group": facts.group,
        "mpi": [
            {
                "family": found.family.value,
                "path": found.path,
                "pmi": sorted(kind.value for kind in found.pmi),
            }
            for found in facts.mpi
        ],
        "mpiexec": [{"family": found.family.value, "path": found.path} for found in facts.mpiexec],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def from_json(raw: bytes) -> ImageFacts:
    """The facts of such a document.  Raises ValueError, KeyError, TypeError for anything else."""
    document = json.loads(raw)
    if document["version"] != VERSION:
        raise ValueError(f"summary version {document['version']}")
    return ImageFacts(
        passwd=document["passwd"],
        group=document["group"],
        mpi=tuple(
            MpiLibrary(
                MpiFamily(found["family"]), found["path"], frozenset(PmiKind(kind) for kind in found["pmi"])
            )
            for found in document["mpi"]
        ),
        mpiexec=tuple(Mpiexec(MpiFamily(found["family"]), found["path"]) for found in document["mpiexec"]),
    )
