# SPDX-License-Identifier: Apache-2.0
"""Simple signing, signatures of App Container Images, and SIF's own, by the real gpg."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import replace
from hpcpod.images.trust.facts import Signature, SignatureKind
from hpcpod.images.trust.judge import refuse
from hpcpod.images.trust.keys import parse_keys
from tests.integration.trust.conftest import Ring
from tests.testbed.signing import DAY, NOW, Gpg, sif_message, sif_payload, simple_payload
from tests.testbed.trusting import DIGEST, NAME, SIF, Signed, asked, verdict

pytestmark = pytest.mark.needs("gpg")


def found(result: Any) -> str:
    """What was found, of the one signature."""
    (check,) = result.checks
    assert not check.good
    return str(check.found)


def test_good(ring: Ring, way: Signed) -> None:
    result = verdict(asked(*ring.gpg.keys("good")), [way.make(ring.good)], way.image)
    assert result.accepted, result
    assert [(check.good, check.key) for check in result.checks] == [(True, ring.good)]
    assert result.until == 0


def test_unsigned(ring: Ring, way: Signed) -> None:
    result = verdict(asked(*ring.gpg.keys("good")), [], way.image)
    assert not result.accepted
    assert found(result).startswith("no signature")
    error = refuse(result, way.image)
    assert (error.slug, "\n" in error.message) == ("image-untrusted", False)
    assert ring.good in error.message
    assert "default of policy.json" in error.message


def test_unknown_key(ring: Ring, way: Signed) -> None:
    result = verdict(asked(*ring.gpg.keys("good")), [way.make(ring.stranger)], way.image)
    assert not result.accepted
    assert found(result) == f"unknown key {ring.stranger}"


def test_expired_key(ring: Ring, way: Signed) -> None:
    signature = way.make(ring.expired, at=NOW - 5 * DAY)
    demand = asked(*ring.gpg.keys("expired"))
    result = verdict(demand, [signature], way.image)
    assert not result.accepted
    assert found(result).startswith("by a key that expired on 20")
    # It was good while the key was, until then.
    before = verdict(demand, [signature], way.image, now=NOW - 2 * DAY)
    assert (before.accepted, before.until) == (True, NOW - 10 * DAY + 777600)


def test_expired_signature(ring: Ring, way: Signed) -> None:
    signature = way.make(ring.parent, at=NOW - 3 * DAY, expires="seconds=86400")
    demand = asked(*ring.gpg.keys("parent"))
    result = verdict(demand, [signature], way.image)
    assert not result.accepted
    assert found(result).startswith("expired on 20")
    before = verdict(demand, [signature], way.image, now=NOW - 3 * DAY + 60)
    assert (before.accepted, before.until) == (True, NOW - 2 * DAY)


def test_revoked_key(ring: Ring, way: Signed) -> None:
    with Gpg() as gpg:
        gpg.run("--import", data=ring.gpg.run("--export-secret-keys", ring.revoked))
        shutil.copytree(ring.gpg.home / "openpgp-revocs.d", gpg.home / "openpgp-revocs.d", dirs_exist_ok=True)
        signature = way.make(ring.revoked)
        assert verdict(asked(*ring.gpg.keys("revoked")), [signature], way.image).accepted
        gpg.revoke(ring.revoked)
        result = verdict(asked(*gpg.keys(ring.revoked)), [signature], way.image)
    assert not result.accepted
    assert found(result) == "by a key that its owner revoked"


def test_subkeys(ring: Ring, way: Signed) -> None:
    with Gpg() as gpg:
        gpg.run("--import", data=ring.gpg.run("--export-secret-keys", ring.parent))
        good, old = way.make(ring.sub), way.make(ring.old, at=NOW - 5 * DAY)
        gone = way.make(ring.gone)
        keys = gpg.keys(ring.parent)
        assert [keys[0].fingerprint, set(keys[0].subkeys)] == [ring.parent, {ring.sub, ring.old, ring.gone}]
        accepted = verdict(asked(*keys), [good], way.image)
        assert [check.key for check in accepted.checks if check.good] == [ring.parent], accepted
        assert found(verdict(asked(*keys), [old], way.image)).startswith("by a key that expired")
        assert verdict(asked(*keys), [gone], way.image).accepted
        gpg.revoke_subkey(ring.parent)
        keys = gpg.keys(ring.parent)
        assert found(verdict(asked(*keys), [gone], way.image)) == "by a key that its owner revoked"
        assert verdict(asked(*keys), [good], way.image).accepted


def test_another_image(ring: Ring, way: Signed) -> None:
    result = verdict(asked(*ring.gpg.keys("good")), [way.other(ring.good)], way.image)
    assert not result.accepted
    word = {"simple": "for another image", "detached": "something else", "sif": "is not what was signed"}
    assert word[way.kind.value] in found(result)


def test_one_good_and_one_bad(ring: Ring, way: Signed) -> None:
    signatures = [way.other(ring.good), way.make(ring.stranger), way.make(ring.second)]
    result = verdict(asked(*ring.gpg.keys("good", "second")), signatures, way.image)
    assert result.accepted
    assert [check.good for check in result.checks] == [False, False, True]


def test_k_of_n(ring: Ring, way: Signed) -> None:
    demand = asked(*ring.gpg.keys("good", "second", "third"), threshold=2)
    one, two = way.make(ring.good), way.make(ring.third)
    assert verdict(demand, [one, two], way.image).accepted
    assert not verdict(demand, [one], way.image).accepted
    # One key is one key, however often it signs, and by whichever subkey.
    assert not verdict(demand, [one, way.make(ring.good, more=("--digest-algo=SHA512",))], way.image).accepted
    assert not verdict(demand, [one, way.make(ring.stranger)], way.image).accepted
    family = asked(*ring.gpg.keys("parent", "good"), threshold=2)
    assert not verdict(family, [way.make(ring.parent), way.make(ring.sub)], way.image).accepted
    refusal = refuse(verdict(demand, [one], way.image), way.image)
    assert "signatures by 2 of the keys" in refusal.message
    assert "1 good signature" in refusal.message


def test_until_the_first_of_those_that_are_needed(ring: Ring, way: Signed) -> None:
    keys = ring.gpg.keys("good", "short")
    both = [way.make(ring.good), way.make(ring.short)]
    assert verdict(asked(*keys), both, way.image).until == 0
    two = verdict(asked(*keys, threshold=2), both, way.image)
    assert (two.accepted, abs(two.until - NOW - DAY) < DAY // 2) == (True, True)


def test_revoked_in_a_trust_directory(ring: Ring, way: Signed) -> None:
    demand = asked(*ring.gpg.keys("good", "parent"))
    for by, revoked in (ring.good, ring.good), (ring.sub, ring.parent), (ring.sub, ring.sub):
        result = verdict(demand, [way.make(by)], way.image, revoked=[revoked])
        assert found(result) == "by a key that a trust directory revokes"
    assert verdict(demand, [way.make(ring.parent)], way.image, revoked=[ring.sub]).accepted


def test_two_signatures_in_one_message(ring: Ring, way: Signed) -> None:
    both = way.make(ring.good, ring.second)
    result = verdict(asked(*ring.gpg.keys("good", "second")), [both], way.image)
    if way.kind is SignatureKind.DETACHED:  # a file beside the image may hold several: each counts for itself
        assert [check.good for check in result.checks] == [True, True]
        assert verdict(asked(*ring.gpg.keys("good", "second"), threshold=2), [both], way.image).accepted
    else:
        assert found(result) == "more than one signature in one message"


@pytest.mark.parametrize("algorithm", ["SHA1", "RIPEMD160"])
def test_weak_digests(ring: Ring, way: Signed, algorithm: str) -> None:
    with Gpg() as gpg:
        by = gpg.key("weak", algorithm="rsa2048")
        more = (f"--digest-algo={algorithm}", "--allow-weak-digest-algos")
        made = _resigned(way, gpg, by, more)
        result = verdict(asked(*gpg.keys(by)), [made], way.image)
        assert not result.accepted
        assert verdict(asked(*gpg.keys(by)), [_resigned(way, gpg, by, ())], way.image).accepted
    assert "digest" in found(result) or "bad" in found(result)


def _resigned(way: Signed, gpg: Gpg, by: str, more: tuple[str, ...]) -> Signature:
    """A good signature by a key of another home."""
    if way.kind is SignatureKind.SIMPLE:
        return Signature(way.kind, gpg.message(simple_payload(DIGEST, NAME), by, more=more), "")
    if way.kind is SignatureKind.SIF:
        real = sif_payload(SIF)
        return Signature(way.kind, gpg.clear(sif_message(real), by, more=more), "", real)
    data = Path(way.image.file).read_bytes()
    read = f"sha256:{hashlib.sha256(data).hexdigest()}".encode()
    return Signature(way.kind, gpg.detached(data, by, more=more), "", read)


def test_corrupt(ring: Ring, way: Signed) -> None:
    good = way.make(ring.good)
    demand = asked(*ring.gpg.keys("good"))
    armored = good.message.startswith(b"-----")
    at = good.message.index(b"\n\n") + 40 if armored else 20
    for cut in (
        b"",
        b"\n",
        good.message[:-10],
        good.message[: at + 10],
        good.message[:at] + bytes((good.message[at] ^ 4,)) + good.message[at + 1 :],
        b"x" + good.message,
        good.message + good.message,
        bytes(5000),
        b"\xff" * 5000,
    ):
        result = verdict(demand, [replace(good, message=cut)], way.image)
        # Twice: a file beside the image may hold several; behind a compressed message gpg reads nothing.
        both = way.kind is not SignatureKind.SIF and cut == good.message * 2
        assert result.accepted is both, cut[:80]
        assert all(check.found.isprintable() for check in result.checks)


def test_kinds_are_not_mistaken_for_one_another(ring: Ring, way: Signed) -> None:
    """The bytes of a good signature under another name are none."""
    good = way.make(ring.good)
    demand = asked(*ring.gpg.keys("good"))
    for kind in SignatureKind:
        result = verdict(demand, [replace(good, kind=kind)], way.image)
        assert result.accepted is (kind is way.kind), kind


def test_the_users_own_gpg_has_no_part_in_it(
    ring: Ring, way: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key ring and options of the user's change nothing, and nothing is left behind."""
    stranger, good = way.make(ring.stranger), way.make(ring.good)
    keys = ring.gpg.keys("good")
    options = ring.gpg.home / "gpg.conf"
    options.write_text("no-such-option\n")
    for name in ("GNUPGHOME", "HOME"):
        monkeypatch.setenv(name, str(ring.gpg.home))
    try:
        assert verdict(asked(*keys), [good], way.image).accepted
        assert not verdict(asked(*keys), [stranger], way.image).accepted
    finally:
        options.unlink()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "--homedir /dev/shm/hpcpod-gpg-" not in listed


# --------------------------------------------------------------------------- keys


def test_a_key_that_gpg_does_not_take(ring: Ring, tmp_path: Path) -> None:
    (key,) = ring.gpg.keys("good")
    naked = replace(key, data=key.data[: 2 + key.data[1]])
    assert parse_keys(naked.data, "x")[0].fingerprint == key.fingerprint
    with pytest.raises(TrustUnusable, match="does not take"):
        verdict(asked(naked), [Signature(SignatureKind.SIMPLE, ring.gpg.message(b"x", ring.good), "x")])
