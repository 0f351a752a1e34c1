# SPDX-License-Identifier: Apache-2.0
"""What sources hand over of signatures: messages as they are, and the digests that the image really has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.sources.aci_source import AciSource
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.sif_source import SifSource
from hpcpod.images.trust.facts import Signature, SignatureKind
from tests.integration.images.singles import manifest
from tests.testbed.layouts import directory as tar_directory
from tests.testbed.layouts import file as tar_file
from tests.testbed.places import AMD64
from tests.testbed.sif_sample import REAL
from tests.testbed.sifs import GROUP, SIGNATURE, Object, partition, sif
from tests.testbed.squashes import directory, squash


def of_sif(path: Path, data: bytes) -> tuple[Signature, ...]:
    path.write_bytes(data)
    with SifSource(Reference("sif", str(path)), DEFAULT_LIMITS) as source:
        return source.signatures(AMD64)


def signed(message: bytes) -> dict[str, Any]:
    """The JSON in a clear-signed message."""
    text = message.partition(b"\n\n")[2].partition(b"\n-----BEGIN PGP SIGNATURE")[0]
    document: dict[str, Any] = json.loads(text)
    return document


def test_digests_are_those_that_the_format_s_own_library_signed(tmp_path: Path) -> None:
    (found,) = of_sif(tmp_path / "real.sif", REAL)
    assert (found.kind, "object 3" in found.origin) == (SignatureKind.SIF, True)
    said, real = signed(found.message), json.loads(found.payload)
    assert said["header"]["digest"] == f"sha256:{real['header']['sha256']}"
    assert len(said["objects"]) == len(real["objects"]) == 2
    for each in said["objects"]:
        has = real["objects"][str(real["first"] + each["relativeId"])]
        assert each["descriptorDigest"] == f"sha256:{has['descriptor']['sha256']}"
        assert each["objectDigest"] == f"sha256:{has['data']['sha256']}"


@pytest.mark.parametrize("at", [48, 36864 + 3000])
def test_another_byte_gives_another_digest(tmp_path: Path, at: int) -> None:
    """In the identity, in the partition."""
    bent = bytearray(REAL)
    bent[at] ^= 1
    (before,) = of_sif(tmp_path / "real.sif", REAL)
    (after,) = of_sif(tmp_path / "bent.sif", bytes(bent))
    assert after.payload != before.payload


def test_all_objects_count_but_signatures(tmp_path: Path) -> None:
    root = partition(squash(directory()))
    data = sif(
        [
            Object(0x4007, b"x"),
            root,
            Object(SIGNATURE, b"sha512: says", link=GROUP | 1),
            Object(SIGNATURE, b"2", link=2),
        ]
    )
    first, second = of_sif(tmp_path / "image.sif", data)
    assert (first.message, second.message) == (b"sha512: says", b"2")
    real = json.loads(first.payload)
    assert (real["first"], set(real["objects"])) == (1, {"1", "2"})
    assert real["objects"]["1"]["data"] == {
        "sha256": hashlib.sha256(b"x").hexdigest(),
        "sha512": hashlib.sha512(b"x").hexdigest(),
    }


def test_a_huge_signature_is_refused(tmp_path: Path) -> None:
    data = sif([partition(squash(directory())), Object(SIGNATURE, bytes((1 << 20) + 1), link=GROUP | 1)])
    with pytest.raises(ImageLimitExceeded):
        of_sif(tmp_path / "image.sif", data)


def of_aci(path: Path) -> tuple[Signature, ...]:
    with AciSource(Reference("aci", str(path)), DEFAULT_LIMITS) as source:
        return source.signatures(AMD64)


def test_the_file_beside_an_aci(tmp_path: Path) -> None:
    path = tmp_path / "image.aci"
    data = tar_file(b"manifest", manifest()) + tar_directory(b"rootfs") + bytes(1024)
    path.write_bytes(data)
    assert of_aci(path) == ()
    (tmp_path / "image.aci.asc").write_bytes(b"signature")
    (found,) = of_aci(path)
    assert (found.kind, found.message) == (SignatureKind.DETACHED, b"signature")
    assert found.payload.decode() == f"sha512:{hashlib.sha512(data).hexdigest()}"
    with (tmp_path / "image.aci.asc").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ImageLimitExceeded):
        of_aci(path)
    (tmp_path / "image.aci.asc").unlink()
    (tmp_path / "image.aci.asc").mkdir()
    with pytest.raises(ImageInvalid):
        of_aci(path)
