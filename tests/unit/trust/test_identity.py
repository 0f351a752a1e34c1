# SPDX-License-Identifier: Apache-2.0
"""signedIdentity: the situations that containers-policy.json(5) speaks of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.images.trust.identity import KINDS, Identity, accepts, is_prefix

D1, D2 = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
R = "example.com/ns/app"

CASES = [
    # rule, image, signature, accepted
    ("matchExact", f"{R}:1", f"{R}:1", True),
    ("matchExact", f"{R}:1", f"{R}:2", False),
    ("matchExact", f"{R}:1", R, False),
    ("matchExact", R, R, False),
    ("matchExact", f"{R}@{D1}", f"{R}@{D1}", True),
    ("matchExact", f"{R}@{D1}", f"{R}:1", False),
    ("matchExact", f"{R}:1@{D1}", f"{R}:1", False),
    ("matchExact", f"{R}:1", "other.com/ns/app:1", False),
    ("matchExact", "docker.io/library/busybox:1", "busybox:1", True),
    ("matchExact", "docker.io/library/busybox:1", "index.docker.io/library/busybox:1", True),
    ("matchExact", "", f"{R}:1", False),
    ("matchRepoDigestOrExact", f"{R}:1", f"{R}:1", True),
    ("matchRepoDigestOrExact", f"{R}:1", f"{R}:2", False),
    ("matchRepoDigestOrExact", f"{R}:1", f"{R}@{D1}", False),
    ("matchRepoDigestOrExact", f"{R}:1", R, False),
    ("matchRepoDigestOrExact", f"{R}@{D1}", f"{R}:1", True),
    ("matchRepoDigestOrExact", f"{R}@{D1}", f"{R}:other", True),
    ("matchRepoDigestOrExact", f"{R}@{D1}", f"{R}@{D2}", True),
    ("matchRepoDigestOrExact", f"{R}@{D1}", R, False),
    ("matchRepoDigestOrExact", f"{R}@{D1}", f"{R}2:1", False),
    ("matchRepoDigestOrExact", f"{R}:1@{D1}", f"{R}:1", True),
    ("matchRepoDigestOrExact", f"{R}:1@{D1}", f"{R}:2", False),
    ("matchRepoDigestOrExact", f"{R}:1@{D1}", f"{R}@{D1}", False),
    ("matchRepoDigestOrExact", f"{R}:1@{D1}", f"{R}:1@{D2}", False),
    ("matchRepoDigestOrExact", R, f"{R}:1", False),
    ("matchRepoDigestOrExact", "", f"{R}:1", False),
    ("matchRepository", f"{R}:1", f"{R}:2", True),
    ("matchRepository", f"{R}:1", R, True),
    ("matchRepository", f"{R}:1", f"{R}@{D1}", True),
    ("matchRepository", f"{R}@{D1}", R, True),
    ("matchRepository", f"{R}:1", "example.com/ns/app2:1", False),
    ("matchRepository", f"{R}:1", "example.com/ns:1", False),
    ("matchRepository", f"{R}:1", "example.com:5000/ns/app:1", False),
    ("matchRepository", f"{R}:1", "", False),
    ("matchRepository", f"{R}:1", f"{R}:", False),
    ("matchRepository", f"{R}:1", f"{R}@sha256:x", False),
    ("matchRepository", f"{R}:1", f"{R}@md5:{'a' * 32}", False),
    ("matchRepository", f"{R}:1", f" {R}", False),
    ("matchRepository", f"{R}:1", f"{R}\n", False),
    ("matchRepository", "", R, False),
]


@pytest.mark.parametrize(("rule", "image", "signed", "good"), CASES)
def test_rules_of_the_image_itself(rule: str, image: str, signed: str, good: bool) -> None:
    assert accepts(Identity(rule), image, signed) is good


@pytest.mark.parametrize("image", ["", "anything.example.com/x:1"])
def test_rules_of_another_name(image: str) -> None:
    reference, repository = Identity("exactReference", f"{R}:1"), Identity("exactRepository", R)
    assert accepts(reference, image, f"{R}:1")
    assert not accepts(reference, image, f"{R}:2")
    assert not accepts(reference, image, R)
    assert accepts(repository, image, f"{R}:2")
    assert accepts(repository, image, R)
    assert not accepts(repository, image, f"{R}x")


def test_prefixes() -> None:
    for prefix, signed, image, name, good in (
        ("mirror.test/v", "vendor.org", "mirror.test/v/a/b:1", "vendor.org/a/b:1", True),
        ("mirror.test/v", "vendor.org", "mirror.test/v/a/b:1", "vendor.org/a/b:2", False),
        (
            "mirror.test/v",
            "vendor.org",
            "mirror.test/v/a/b:1",
            "mirror.test/v/a/b:1",
            False,
        ),
        ("mirror.test/v", "vendor.org", f"mirror.test/v/a@{D1}", "vendor.org/a:9", True),
        ("mirror.test/v", "vendor.org", "mirror.test/vx/a:1", "vendor.orgx/a:1", False),
        (
            "mirror.test/v",
            "vendor.org",
            "mirror.test/vx/a:1",
            "mirror.test/vx/a:1",
            True,
        ),
        ("mirror.test", "vendor.org", "mirror.test:5000/a:1", "vendor.org:5000/a:1", False),
        ("mirror.test/v/a", "vendor.org/b", "mirror.test/v/a:1", "vendor.org/b:1", True),
        ("mirror.test/v/a", "vendor.org", "mirror.test/v/a:1", "vendor.org:1", False),
        ("mirror.test", "docker.io", "mirror.test/library/a:1", "docker.io/library/a:1", True),
        ("mirror.test", "docker.io", "mirror.test/library/a:1", "a:1", True),
    ):
        assert accepts(Identity("remapIdentity", prefix, signed), image, name) is good, (prefix, image, name)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("example.com", True),
        ("example.com:5000", True),
        ("localhost", True),
        ("example.com/a/b", True),
        ("docker.io", True),
        ("[::1]:5000", True),
        ("busybox", False),
        ("ns/app", False),
        ("example.com/", False),
        ("example.com/a:1", False),
        ("example.com/A", False),
        ("/a", False),
        ("", False),
        (f"example.com/a@{D1}", False),
    ],
)
def test_is_prefix(text: str, good: bool) -> None:
    assert is_prefix(text) is good


@given(st.sampled_from(KINDS), st.text(max_size=40), st.text(max_size=40))
def test_rubbish_is_no_name(kind: str, image: str, signed: str) -> None:
    rule = Identity(kind, f"{R}:1" if kind.startswith("exact") else "example.com", "vendor.org")
    assert accepts(rule, image, signed) in (True, False)
    assert str(rule).isprintable()
    assert not accepts(rule, f"{R}:1", "\0")
