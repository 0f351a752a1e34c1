# SPDX-License-Identifier: Apache-2.0
"""App Container Images and SIF files: what their signatures are over."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hpcpod.frozen import replace
from hpcpod.images.trust.identity import Identity
from hpcpod.images.trust.keys import dearmored
from hpcpod.images.trust.payload import compare_sif
from tests.integration.trust.conftest import Ring
from tests.testbed.sif_sample import REAL
from tests.testbed.signing import sif_message, sif_payload
from tests.testbed.trusting import (
    SIF,
    asked,
    detached,
    in_sif,
    verdict,
)

pytestmark = pytest.mark.needs("gpg")


def found(result: Any) -> str:
    """What was found, of the one signature."""
    (check,) = result.checks
    assert not check.good
    return str(check.found)


def test_a_file_that_was_changed_after_it_was_read(ring: Ring, tmp_path: Path) -> None:
    way = detached(ring.gpg, tmp_path)
    evil = b"evil"
    Path(way.image.file).write_bytes(evil)
    signature = replace(way.make(ring.good, data=evil))
    result = verdict(asked(*ring.gpg.keys("good")), [signature], way.image)
    assert "changed since it was read" in found(result)
    Path(way.image.file).unlink()
    assert not verdict(asked(*ring.gpg.keys("good")), [signature], way.image).accepted
    os.mkfifo(way.image.file)
    assert not verdict(asked(*ring.gpg.keys("good")), [signature], way.image).accepted


def test_two_files_of_signatures_behind_one_another(ring: Ring, tmp_path: Path) -> None:
    way = detached(ring.gpg, tmp_path)
    both = way.make(ring.good).message + way.make(ring.second).message
    one = replace(way.make(ring.good), message=both)
    assert verdict(asked(*ring.gpg.keys("good", "second"), threshold=2), [one], way.image).accepted
    binary = dearmored(both, "SIGNATURE")
    two = replace(one, message=binary)
    assert verdict(asked(*ring.gpg.keys("good", "second"), threshold=2), [two], way.image).accepted


def test_names_have_no_part_in_files(ring: Ring, tmp_path: Path) -> None:
    for make in (detached, in_sif):
        way = make(ring.gpg, tmp_path)
        demand = asked(*ring.gpg.keys("good"), kind="signedBy", identity=Identity("matchExact"))
        assert verdict(demand, [way.make(ring.good)], way.image).accepted


@pytest.mark.parametrize(
    "change",
    [
        lambda message: message["objects"].pop(),
        lambda message: message["objects"].append(message["objects"][0]),
        lambda message: message["objects"].append({**message["objects"][0], "relativeId": 7}),
        lambda message: message["objects"][0].update(relativeId=-1),
        lambda message: message["objects"][0].update(relativeId=True),
        lambda message: message["objects"][0].update(more=1),
        lambda message: message.update(version=2),
        lambda message: message.update(objects={}),
        lambda message: message.update(objects=[]),
        lambda message: message["header"].update(digest="sha256:" + "0" * 64),
        lambda message: message["header"].update(digest="md5:" + "0" * 32),
        lambda message: message["objects"][0].update(
            descriptorDigest=message["objects"][1]["descriptorDigest"]
        ),
    ],
)
def test_sif_messages_that_are_of_something_else(ring: Ring, tmp_path: Path, change: Any) -> None:
    way = in_sif(ring.gpg, tmp_path)
    message = json.loads(sif_message(sif_payload(SIF)))
    change(message)
    signature = way.make(ring.good, data=json.dumps(message).encode())
    assert not verdict(asked(*ring.gpg.keys("good")), [signature], way.image).accepted


def test_digests_that_sif_may_use(ring: Ring, tmp_path: Path) -> None:
    way = in_sif(ring.gpg, tmp_path)
    real = sif_payload(SIF, "sha256", "sha384", "sha512")
    for algorithm, payload, accepted in (
        ("sha512", real, True),
        ("sha384", real, True),
        ("sha384", sif_payload(SIF), False),
    ):
        signature = replace(way.make(ring.good, data=sif_message(real, algorithm)), payload=payload)
        assert verdict(asked(*ring.gpg.keys("good")), [signature], way.image).accepted is accepted


def test_old_sif_signatures_are_not_accepted(ring: Ring, tmp_path: Path) -> None:
    """Those of before 2020 protect neither header nor descriptors."""
    way = in_sif(ring.gpg, tmp_path)
    text = b"SIFHASH:\n" + hashlib.sha384(SIF).hexdigest().encode() + b"\n"
    assert not verdict(asked(*ring.gpg.keys("good")), [way.make(ring.good, data=text)], way.image).accepted


def test_the_format_is_that_of_a_real_file() -> None:
    """The digests that this testbed computes are those that the format's own library has signed."""
    start = REAL.index(b"{", REAL.index(b"-----BEGIN PGP SIGNED MESSAGE-----"))
    compare_sif(REAL[start : REAL.index(b"\n-----BEGIN PGP SIGNATURE", start)], sif_payload(REAL))


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b'{"first": "1", "header": {}, "objects": {}}'])
def test_digests_that_a_source_does_not_hand_over(ring: Ring, tmp_path: Path, payload: bytes) -> None:
    for make in (detached, in_sif):
        way = make(ring.gpg, tmp_path)
        signature = replace(way.make(ring.good), payload=payload)
        assert not verdict(asked(*ring.gpg.keys("good")), [signature], way.image).accepted
