# SPDX-License-Identifier: Apache-2.0
"""Simple signing: what a good signature must say."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from hpcpod.frozen import replace
from hpcpod.images.trust.facts import Signature, SignatureKind, Subject
from hpcpod.images.trust.identity import Identity
from tests.integration.trust.conftest import Ring
from tests.testbed.signing import simple_payload
from tests.testbed.trusting import DIGEST, IMAGE, INDEX, NAME, OTHER, REPOSITORY, asked, verdict

pytestmark = pytest.mark.needs("gpg")


def found(result: Any) -> str:
    """What was found, of the one signature."""
    (check,) = result.checks
    assert not check.good
    return str(check.found)


def judged(ring: Ring, data: bytes, image: Subject = IMAGE, **demand: Any) -> Any:
    signature = Signature(SignatureKind.SIMPLE, ring.gpg.message(data, ring.good), "lookaside")
    return verdict(asked(*ring.gpg.keys("good"), kind="signedBy", **demand), [signature], image)


def test_names(ring: Ring) -> None:
    other = simple_payload(DIGEST, "registry.example.com/other/app:1")
    assert found(judged(ring, other)) == "for another name: registry.example.com/other/app:1"
    assert not judged(ring, simple_payload(DIGEST, f"{REPOSITORY}:2")).accepted
    assert judged(
        ring, simple_payload(DIGEST, f"{REPOSITORY}:2"), identity=Identity("matchRepository")
    ).accepted
    pinned = replace(IMAGE, identity=f"{REPOSITORY}@{DIGEST}")
    assert judged(ring, simple_payload(DIGEST, f"{REPOSITORY}:2"), pinned).accepted
    assert not judged(ring, simple_payload(DIGEST, REPOSITORY), pinned).accepted
    exact = Identity("exactReference", "vendor.example.com/app:1")
    assert judged(ring, simple_payload(DIGEST, "vendor.example.com/app:1"), identity=exact).accepted


def test_an_index_that_led_to_the_image(ring: Ring) -> None:
    assert judged(ring, simple_payload(INDEX, NAME)).accepted
    assert not judged(ring, simple_payload(OTHER, NAME)).accepted


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole.update(more=1),
        lambda whole: whole.pop("optional"),
        lambda whole: whole.update(optional=None),
        lambda whole: whole["optional"].update(timestamp="now"),
        lambda whole: whole["optional"].update(timestamp=1.5),
        lambda whole: whole["optional"].update(creator=1),
        lambda whole: whole["critical"].update(type="cosign container image signature"),
        lambda whole: whole["critical"].update(more=1),
        lambda whole: whole["critical"].pop("identity"),
        lambda whole: whole["critical"]["image"].update(more=1),
        lambda whole: whole["critical"]["identity"].update({"docker-reference": None}),
        lambda whole: whole["critical"]["identity"].update({"docker-reference": ""}),
        lambda whole: whole["critical"]["image"].update({"docker-manifest-digest": [DIGEST]}),
    ],
)
def test_payloads_that_say_something_else(ring: Ring, change: Any) -> None:
    whole = json.loads(simple_payload(DIGEST, NAME))
    change(whole)
    assert not judged(ring, json.dumps(whole).encode()).accepted


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"not JSON",
        b'{"critical": 1, "optional": {}}',
        simple_payload(DIGEST, NAME) + b"{}",
        simple_payload(DIGEST, NAME).replace(b'"critical"', b'"critical": {}, "critical"', 1),
        b'{"a":' * 5000,
        b"\xff" + simple_payload(DIGEST, NAME),
    ],
    ids=range(9),
)
def test_signed_rubbish(ring: Ring, data: bytes) -> None:
    assert not judged(ring, data).accepted


def test_what_is_optional_may_be_anything(ring: Ring) -> None:
    whole = json.loads(simple_payload(DIGEST, NAME))
    whole["optional"] = {"anything": [1, {"a": None}]}
    assert judged(ring, json.dumps(whole).encode()).accepted


def test_messages_that_are_not_signed_messages(ring: Ring) -> None:
    gpg, data = ring.gpg, simple_payload(DIGEST, NAME)
    encrypted = gpg.run(
        *("--sign", "--local-user", ring.good, "--symmetric", "--passphrase", "word"),
        data=data,
    )
    for message in (
        gpg.run("--store", data=data),  # a literal packet alone
        gpg.run("--store", data=data) + gpg.message(data, ring.good),
        gpg.message(data, ring.good, more=("--compress-algo=none",)) + gpg.run("--store", data=data),
        gpg.message(data, ring.good, more=("--compress-algo=none",)) * 2,
        gpg.clear(data, ring.good),
        gpg.detached(data, ring.good),
        gpg.detached(data, ring.good, armor=False),
        encrypted,
        gpg.message(gpg.message(data, ring.good), ring.good),  # what is signed is a signature
        gpg.public("good"),
    ):
        signature = Signature(SignatureKind.SIMPLE, message, "lookaside")
        result = verdict(asked(*gpg.keys("good")), [signature])
        assert not result.accepted, message[:60]
    armored = gpg.message(data, ring.good, more=("--armor",))
    assert verdict(asked(*gpg.keys("good")), [Signature(SignatureKind.SIMPLE, armored, "x")]).accepted
    plain = gpg.message(data, ring.good, more=("--compress-algo=none",))
    assert verdict(asked(*gpg.keys("good")), [Signature(SignatureKind.SIMPLE, plain, "x")]).accepted


def test_a_signature_over_a_text_is_not_one_over_bytes(ring: Ring) -> None:
    message = ring.gpg.message(simple_payload(DIGEST, NAME), ring.good, more=("--textmode",))
    result = verdict(asked(*ring.gpg.keys("good")), [Signature(SignatureKind.SIMPLE, message, "x")])
    assert "of class 01" in found(result)


def test_a_bomb_is_cut_off(ring: Ring) -> None:
    message = ring.gpg.message(bytes(300 << 20), ring.good)
    assert len(message) < 4 << 20
    started = time.monotonic()
    result = verdict(asked(*ring.gpg.keys("good")), [Signature(SignatureKind.SIMPLE, message, "x")])
    assert not result.accepted
    assert time.monotonic() - started < 60
