# SPDX-License-Identifier: Apache-2.0
"""Prefix rules: their files, and which prefixes there can be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import TrustUnusable, UsageError
from hpcpod.images.trust.rules import (
    Rule,
    check_prefix,
    file_name,
    key_file,
    parse_rule,
    revoked_file,
    revoked_fingerprint,
    rule_bytes,
)

A, B = "A" * 40, f"sha256:{'b' * 64}"
GOOD = Rule("docker", "registry.example.com/site", (A, B), 2, True)


def test_what_is_written_is_read() -> None:
    assert parse_rule(rule_bytes(GOOD), "x") == GOOD


BAD: list[dict[str, Any]] = [
    {"version": 2},
    {"version": True},
    {"transport": "oci"},
    {"transport": "dokcer"},
    {"prefix": "debian"},
    {"prefix": ""},
    {"prefix": None},
    {"keys": []},
    {"keys": [A, A]},
    {"keys": [A.lower(), B]},
    {"keys": ["../../etc/passwd"]},
    {"keys": [1, B]},
    {"keys": A},
    {"threshold": 0},
    {"threshold": 3},
    {"threshold": -1},
    {"threshold": True},
    {"threshold": 1.0},
    {"named": 0},
    {"more": 1},
]


@pytest.mark.parametrize("change", BAD)
def test_bad_rules(change: dict[str, Any]) -> None:
    document = json.loads(rule_bytes(GOOD)) | change
    with pytest.raises(TrustUnusable):
        parse_rule(json.dumps(document).encode(), "x")


@pytest.mark.parametrize("key", json.loads(rule_bytes(GOOD)))
def test_every_field_is_needed(key: str) -> None:
    document = json.loads(rule_bytes(GOOD))
    del document[key]
    with pytest.raises(TrustUnusable):
        parse_rule(json.dumps(document).encode(), "x")


@pytest.mark.parametrize(
    ("transport", "prefix", "good"),
    [
        ("docker", "registry.example.com", True),
        ("docker", "localhost:5000", True),
        ("docker", "registry.example.com/a/b", True),
        ("docker", "registry.example.com/a:1", True),
        ("docker", "*.example.com", True),
        ("docker", "docker.io/library/debian", True),
        ("docker", "debian", False),
        ("docker", "site/app", False),
        ("docker", "registry.example.com/", False),
        ("docker", "registry.example.com/A", False),
        ("docker", "*", False),
        ("docker", "*.example.com/a", False),
        ("docker", "docker://registry.example.com", False),
        ("docker", "", False),
        ("docker", "a\x1b", False),
        ("sif", "/srv/images", True),
        ("sif", "/srv/a b.sif", True),
        ("aci", "srv", False),
        ("aci", "/", False),
        ("aci", "", False),
        ("aci", "/srv/../x", False),
        ("oci", "/srv", False),
    ],
)
def test_prefixes(transport: str, prefix: str, good: bool) -> None:
    if good:
        check_prefix(transport, prefix)
    else:
        with pytest.raises(UsageError):
            check_prefix(transport, prefix)


@given(st.text(), st.text())
def test_names_of_files(transport: str, prefix: str) -> None:
    name = file_name(transport, prefix)
    assert (len(name), name.endswith(".json"), "/" in name) == (37, True, False)


def test_names_of_keys() -> None:
    assert [key_file(A), key_file(B)] == [f"{A}.pgp", f"{'b' * 64}.pem"]
    assert [revoked_fingerprint(revoked_file(key)) for key in (A, B)] == [A, B]
    assert revoked_fingerprint("README") is None
