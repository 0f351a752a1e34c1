# SPDX-License-Identifier: Apache-2.0
"""Keys that many tests sign by, made once; cosign and a registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.testbed.signing import DAY, NOW, Cosign, Gpg, Registry
from tests.testbed.trusting import WAYS, Signed


@dataclass(frozen=True)
class Ring:
    """Keys, by what is the matter with them; each a fingerprint.

    good, second, third, stranger: nothing.  expired: since yesterday.  short: in a day.  revoked: by its
    owner.  parent: has the subkeys sub (good), old (expired) and gone (revoked).
    """

    gpg: Gpg
    good: str
    second: str
    third: str
    stranger: str
    expired: str
    short: str
    revoked: str
    parent: str
    sub: str
    old: str
    gone: str


@pytest.fixture(scope="session")
def ring() -> Iterator[Ring]:
    """The keys; tests that use it need "gpg"."""
    with Gpg() as gpg:
        past = NOW - 10 * DAY
        plain = {name: gpg.key(name) for name in ("good", "second", "third", "stranger")}
        expired = gpg.key("expired", expires="seconds=777600", at=past)
        short = gpg.key("short", expires="seconds=86400")
        revoked = gpg.key("revoked")
        parent = gpg.key("parent", at=past)
        gone = gpg.subkey(parent, at=past)
        sub = gpg.subkey(parent)
        old = gpg.subkey(parent, expires="seconds=777600", at=past)
        yield Ring(
            gpg,
            expired=expired,
            short=short,
            revoked=revoked,
            parent=parent,
            sub=sub,
            old=old,
            gone=gone,
            **plain,
        )


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, ring: Ring, tmp_path: Path) -> Signed:
    """An image that is signed by OpenPGP, in each of the ways."""
    return WAYS[request.param](ring.gpg, tmp_path)


@pytest.fixture(scope="session")
def cosign(tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    """cosign with a directory; tests that use it need "cosign"."""
    return Cosign(tmp_path_factory.mktemp("cosign"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty registry; tests that use it need "docker-registry" and "skopeo"."""
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running
