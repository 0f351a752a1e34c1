# SPDX-License-Identifier: Apache-2.0
"""Image references: any text is a reference that is written back the same, or a refusal."""

from __future__ import annotations

import os

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.reference import TRANSPORTS, is_digest, parse_reference
from tests.fuzz.target import Broken, Target, refused

DIGEST = "sha256:" + "0" * 64
SEEDS = {
    "oci": "oci:a",
    "tag": "oci:/a/b:t",
    "digest": f"oci:a:t@{DIGEST}",
    "archive": f"oci-archive:a@b.tar@{DIGEST}",
    "aci": f"aci:a.aci@sha512-{'0' * 128}",
    "sif": f"sif:a.sif@{DIGEST}",
    "docker": "docker://debian:12",
    "name": "debian:12",
    "path": "/a/b",
    "bad digest": "oci:a@sha256:../x",
}


def run(data: bytes) -> None:
    """Parse the text twice."""
    try:
        found = parse_reference(os.fsdecode(data))
    except HpcpodError as error:
        refused(error)
        return
    if found.transport not in TRANSPORTS or not found.path or "\0" in found.path:
        raise Broken(repr(found))
    if found.digest and not is_digest(found.digest):
        raise Broken(repr(found))
    if parse_reference(str(found)) != found:
        raise Broken(f"{found!r} is written as {found}")


TARGET = Target(
    run=run,
    seeds={name: text.encode() for name, text in SEEDS.items()},
    longest=512,
    words=(b"oci:", b"oci-archive:", b"sha256:", b"sha512:", b"@sha256:", b"docker://", DIGEST.encode()),
    runs=20_000,
)
