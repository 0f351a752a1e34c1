# SPDX-License-Identifier: Apache-2.0
"""containers-policy.json(5): what is read, and that nothing else is."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import TrustUnusable
from hpcpod.images.trust.identity import Identity
from hpcpod.images.trust.policy import KeySource, Policy, Requirement, parse_policy

ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}
SIGNED = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/a"}
SIGSTORE = {"type": "sigstoreSigned", "keyPath": "/keys/a.pub"}
FULCIO = {"caPath": "/ca", "oidcIssuer": "https://issuer.example.com", "subjectEmail": "me@example.com"}
PKI = {"caRootsData": "AAAA", "subjectHostname": "example.com"}

FULL: dict[str, Any] = {
    "default": [REJECT],
    "transports": {
        "dir": {"": [ACCEPT]},
        "docker": {
            "example.com/playground": [ACCEPT],
            "example.com/production": [SIGNED],
            "example.com/hardened": [
                {**SIGNED, "signedIdentity": {"type": "matchRepository"}},
                {
                    "type": "signedBy",
                    "keyType": "GPGKeys",
                    "keyData": "AAAA",
                    "signedIdentity": {"type": "exactReference", "dockerReference": "example.com/a:1"},
                },
            ],
            "*.example.org": [SIGSTORE],
            "": [
                {
                    "type": "sigstoreSigned",
                    "keyDatas": ["AAAA", "BBBB"],
                    "signedIdentity": {
                        "type": "remapIdentity",
                        "prefix": "mirror.example.com/x",
                        "signedPrefix": "vendor.example.com",
                    },
                }
            ],
        },
        "sif": {"/srv/images": [{**SIGNED, "keyPaths": ["/keys/a", "/keys/b"]}]},
        "docker-daemon": {"": [ACCEPT]},
        "atomic": {"example.com:5000/a": [REJECT]},
    },
}
del FULL["transports"]["sif"]["/srv/images"][0]["keyPath"]


def parse(document: Any) -> Policy:
    return parse_policy(json.dumps(document).encode(), "policy.json")


def one(requirement: Any) -> Requirement:
    (found,) = parse({"default": [requirement]}).default
    return found


def test_all_at_once() -> None:
    policy = parse(FULL)
    assert policy.default == (Requirement("reject"),)
    assert policy.scopes["docker", "example.com/production"] == (
        Requirement("signedBy", (KeySource("/keys/a"),)),
    )
    first, second = policy.scopes["docker", "example.com/hardened"]
    assert first.identity == Identity("matchRepository")
    assert second == Requirement(
        "signedBy", (KeySource(text="AAAA"),), Identity("exactReference", "example.com/a:1")
    )
    (default,) = policy.scopes["docker", ""]
    assert default.keys == (KeySource(text="AAAA"), KeySource(text="BBBB"))
    assert default.identity == Identity("remapIdentity", "mirror.example.com/x", "vendor.example.com")
    (sif,) = policy.scopes["sif", "/srv/images"]
    assert sif.keys == (KeySource("/keys/a"), KeySource("/keys/b"))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"fulcio": FULCIO, "rekorPublicKeyPath": "/r"}, "fulcio"),
        ({"fulcio": FULCIO, "rekorPublicKeyDatas": ["AAAA"]}, "fulcio"),
        ({"pki": PKI}, "pki"),
        ({"keyPath": "/k", "rekorPublicKeyPath": "/r"}, "rekorPublicKeyPath"),
        ({"keyData": "AAAA", "rekorPublicKeyDatas": ["AAAA"]}, "rekorPublicKeyDatas"),
    ],
)
def test_what_cannot_be_checked_is_met_by_nothing(more: Any, named: str) -> None:
    assert one({"type": "sigstoreSigned", **more}).unsupported == f"{named} is not supported here"


BAD_REQUIREMENTS: list[Any] = [
    {},
    [],
    None,
    "reject",
    {"type": None},
    {"type": ["reject"]},
    {"type": "signedBaseLayer"},
    {"type": "Reject"},
    {"Type": "reject"},
    {**REJECT, "x": 1},
    {**ACCEPT, "signedIdentity": {"type": "matchExact"}},
    {"type": "signedBy", "keyPath": "/k"},
    {**SIGNED, "keyType": "signedByGPGKeys"},
    {**SIGNED, "keyType": "X509Certificates"},
    {**SIGNED, "keyType": None},
    {**SIGNED, "keyData": "AAAA"},
    {**SIGNED, "keyDatas": ["AAAA"]},
    {**SIGNED, "keyPath": "keys/relative"},
    {**SIGNED, "keyPath": ""},
    {**SIGNED, "keyPath": ["/k"]},
    {**SIGNED, "keyPath": "/k\0"},
    {**SIGNED, "keypath": "/k"},
    {"type": "signedBy", "keyType": "GPGKeys"},
    {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": []},
    {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": "/k"},
    {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/k", None]},
    {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/k"] * 65},
    {**SIGNED, "signedIdentity": None},
    {**SIGNED, "signedIdentity": {}},
    {**SIGNED, "signedIdentity": "matchExact"},
    {**SIGNED, "signedIdentity": {"type": "matchAnything"}},
    {**SIGNED, "signedIdentity": {"type": "matchExact", "x": 1}},
    {**SIGNED, "signedIdentity": {"type": "exactReference"}},
    {**SIGNED, "signedIdentity": {"type": "exactReference", "dockerReference": "example.com/a"}},
    {**SIGNED, "signedIdentity": {"type": "exactReference", "dockerReference": "UPPER"}},
    {**SIGNED, "signedIdentity": {"type": "exactRepository", "dockerReference": "example.com/a"}},
    {**SIGNED, "signedIdentity": {"type": "exactRepository", "dockerRepository": ""}},
    {**SIGNED, "signedIdentity": {"type": "remapIdentity", "prefix": "example.com"}},
    {**SIGNED, "signedIdentity": {"type": "remapIdentity", "prefix": "", "signedPrefix": "example.com"}},
    {**SIGNED, "signedIdentity": {"type": "remapIdentity", "prefix": "a.b/c:1", "signedPrefix": "a.b"}},
    {**SIGNED, "signedIdentity": {"type": "remapIdentity", "prefix": "a.b/", "signedPrefix": "a.b"}},
    {"type": "sigstoreSigned"},
    {**SIGSTORE, "keyType": "GPGKeys"},
    {**SIGSTORE, "keyData": "AAAA"},
    {**SIGSTORE, "rekorPublicKeyPath": "/r", "rekorPublicKeyData": "AAAA"},
    {**SIGSTORE, "rekorPublicKeyPath": 1},
    {**SIGSTORE, "fulcio": FULCIO, "rekorPublicKeyPath": "/r"},
    {"type": "sigstoreSigned", "fulcio": FULCIO},
    {"type": "sigstoreSigned", "fulcio": {**FULCIO, "caData": "A"}, "rekorPublicKeyPath": "/r"},
    {"type": "sigstoreSigned", "fulcio": {"caPath": "/c"}, "rekorPublicKeyPath": "/r"},
    {"type": "sigstoreSigned", "fulcio": {**FULCIO, "x": "y"}, "rekorPublicKeyPath": "/r"},
    {"type": "sigstoreSigned", "fulcio": None, "rekorPublicKeyPath": "/r"},
    {"type": "sigstoreSigned", "pki": {"caRootsPath": "/c"}},
]


@pytest.mark.parametrize("requirement", BAD_REQUIREMENTS, ids=range(len(BAD_REQUIREMENTS)))
def test_bad_requirements(requirement: Any) -> None:
    with pytest.raises(TrustUnusable) as caught:
        one(requirement)
    assert caught.value.message.startswith("policy.json: ")
    assert caught.value.message.isprintable()


BAD = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"default": []}',
    b'{"default": null}',
    b'{"default": {"type": "reject"}}',
    b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
    b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
    b'{"default": [{"type": "reject"}], "Default": [{"type": "reject"}]}',
    b'{"default": [{"type": "reject"}], "transports": null}',
    b'{"default": [{"type": "reject"}], "transports": []}',
    b'{"default": [{"type": "reject"}], "transports": {"docker": null}}',
    b'{"default": [{"type": "reject"}], "transports": {"docker": {"a": []}}}',
    b'{"default": [{"type": "reject"}], "transports": {"docker": {"a": [{"type": "reject"}], "a": []}}}',
    b'{"default": [{"type": "reject"}], "transports": {"docker": {}, "docker": {}}}',
    b'{"default": [{"type": "reject"}], "transports": {"dokcer": {}}}',
    b'{"default": [{"type": "reject"}]} {}',
    b'{"default": [{"type": "reject"}] /* comment */}',
    b'\xef\xbb\xbf{"default": [{"type": "reject"}]}',
    b'{"default": [{"type": "reject"}], "x": NaN}',
    b'{"default": [{"type": "\xff"}]}',
    b'{"default": ' * 10000,
    b'{"default": [{"type": "reject"}], "transports": {"": ' + b"[" * 500 + b"]" * 500 + b"}}",
]


@pytest.mark.parametrize("raw", BAD, ids=range(len(BAD)))
def test_bad_files(raw: bytes) -> None:
    with pytest.raises(TrustUnusable):
        parse_policy(raw, "policy.json")


@pytest.mark.parametrize(
    ("transport", "scope", "good"),
    [
        ("docker", "*.example.com", True),
        ("docker", "*.com", True),
        ("docker", "example*.*.com", False),
        ("docker", "*example.com", False),
        ("docker", "*.*.com", False),
        ("docker", "*.", False),
        ("docker", "*", False),
        ("docker", "*.example.com/site", False),
        ("docker", "*.example.com:5000", False),
        ("docker", "localhost:5000/a/b:tag", True),
        ("docker", "a\nb", False),
        ("dir", "/srv/a", True),
        ("dir", "/", False),
        ("dir", "srv", False),
        ("oci", "/srv/a:tag", True),
        ("oci", "/srv//a", False),
        ("oci", "/srv/a/", False),
        ("sif", "/srv/../a", False),
        ("aci", "/srv/./a", False),
        ("erofs", "/srv/a b", True),
        ("docker-archive", "/srv/a.tar", True),
    ],
)
def test_scopes(transport: str, scope: str, good: bool) -> None:
    document = {"default": [REJECT], "transports": {transport: {scope: [ACCEPT]}}}
    if good:
        assert (transport, scope) in parse(document).scopes
    else:
        with pytest.raises(TrustUnusable):
            parse(document)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in a document."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [each for key in value for each in places(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [each for number, item in enumerate(value) for each in places(item, (*path, number))]
    return found


def parent(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


def accepted(policy: Policy) -> set[tuple[str, str]]:
    """Where a policy takes images as they are."""
    entries = {("default", ""): policy.default, **policy.scopes}
    return {key for key, found in entries.items() if all(one.kind == ACCEPT["type"] for one in found)}


STRICT = copy.deepcopy(FULL)
del STRICT["transports"]["dir"], STRICT["transports"]["docker-daemon"]
del STRICT["transports"]["docker"]["example.com/playground"]
WORDS = st.sampled_from(["", "type", "x", "keyData", "matchExact", "/k", "reject", "default"]) | st.text(
    max_size=9
)
VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 3) | WORDS | st.just([]) | st.just({}) | st.just([{}])
)


@given(st.sampled_from(places(STRICT)), VALUES)
def test_another_value_never_makes_a_policy_accept(path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(STRICT)
    parent(document, path)[path[-1]] = value
    try:
        found = parse(document)
    except TrustUnusable as error:
        assert error.message.isprintable()
    else:
        assert not accepted(found)


@given(st.sampled_from(places(STRICT)), WORDS)
def test_another_name_never_makes_a_policy_accept(path: tuple[Any, ...], name: str) -> None:
    document = copy.deepcopy(STRICT)
    holder = parent(document, path)
    if not isinstance(holder, dict):
        return
    holder[name] = holder.pop(path[-1])
    try:
        found = parse(document)
    except TrustUnusable:
        return
    # Only a scope, or a value put where it was, may be called otherwise.
    assert not accepted(found)
    assert name == path[-1] or path[:1] == ("transports",)


@given(st.sampled_from(places(FULL)), st.text(max_size=8), VALUES)
def test_a_field_that_is_not_known_is_an_error(path: tuple[Any, ...], name: str, value: Any) -> None:
    document = copy.deepcopy(FULL)
    target = parent(document, (*path, None))
    is_scopes = len(path) == 2 and path[0] == "transports"
    if not isinstance(target, dict) or name in target or is_scopes:
        return
    target[name] = value
    with pytest.raises(TrustUnusable):
        parse(document)


@given(st.integers(0, len(json.dumps(STRICT)) - 1), st.integers(1, 255))
def test_a_changed_byte_never_makes_a_policy_accept(at: int, change: int) -> None:
    raw = bytearray(json.dumps(STRICT).encode())
    raw[at] ^= change
    try:
        found = parse_policy(bytes(raw), "policy.json")
    except TrustUnusable as error:
        assert error.message.isprintable()
    else:
        assert not accepted(found)
