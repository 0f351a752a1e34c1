# SPDX-License-Identifier: Apache-2.0
"""policy.json: any bytes are a policy that says what they say, or a refusal."""

from __future__ import annotations

import json

from hpcpod.errors import HpcpodError
from hpcpod.images.trust.policy import ACCEPT, PATHS, REJECT, Requirement, parse_policy
from tests.fuzz.target import Broken, Target, refused

REQUIREMENTS: dict[str, dict[str, object]] = {
    "accept": {"type": "insecureAcceptAnything"},
    "reject": {"type": "reject"},
    "signed": {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"},
    "paths": {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/k", "/l"]},
    "sigstore": {"type": "sigstoreSigned", "keyData": "AAAA", "signedIdentity": {"type": "matchRepository"}},
    "datas": {"type": "sigstoreSigned", "keyDatas": ["AAAA"], "rekorPublicKeyPath": "/r"},
    "fulcio": {
        "type": "sigstoreSigned",
        "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "m"},
        "rekorPublicKeyData": "AAAA",
    },
    "remap": {
        "type": "signedBy",
        "keyType": "GPGKeys",
        "keyData": "AAAA",
        "signedIdentity": {"type": "remapIdentity", "prefix": "a.b", "signedPrefix": "c.d/e"},
    },
}
SEEDS = {
    name: json.dumps(
        {
            "default": [{"type": "reject"}],
            "transports": {"docker": {"a.b/c": [each], "*.b": [each]}, "sif": {"": [each], "/a/b": [each]}},
        }
    ).encode()
    for name, each in REQUIREMENTS.items()
}


def run(data: bytes) -> None:
    """Parse it, and compare with what a plain reader of JSON finds in it."""
    try:
        policy = parse_policy(data, "policy.json")
    except HpcpodError as error:
        refused(error)
        return
    plain = json.loads(data)
    check(policy.default, plain["default"])
    count = sum(len(scopes) for scopes in plain.get("transports", {}).values())
    if count != len(policy.scopes):
        raise Broken(f"{count} scopes, but {len(policy.scopes)} were read")
    for (transport, scope), found in policy.scopes.items():
        check(found, plain["transports"][transport][scope])
        if transport in PATHS and scope and (not scope.startswith("/") or "/../" in f"{scope}/"):
            raise Broken(f"scope {scope!r}")


def check(found: tuple[Requirement, ...], plain: list[dict[str, object]]) -> None:
    """Raise Broken unless these are those requirements, with keys where they are about keys."""
    if [one.kind for one in found] != [one["type"] for one in plain] or not found:
        raise Broken(f"{found} of {plain}")
    for one in found:
        if one.kind in (ACCEPT, REJECT):
            continue
        if not one.keys and not one.unsupported:
            raise Broken(f"no keys: {one}")
        if any(bool(key.path) is bool(key.text) for key in one.keys):
            raise Broken(f"no key: {one}")


TARGET = Target(
    run=run,
    seeds=SEEDS,
    words=(
        *(word.encode() for each in REQUIREMENTS.values() for word in each),
        b"insecureAcceptAnything",
        b"exactReference",
        b"dockerReference",
        b"exactRepository",
        b"dockerRepository",
        b"matchExact",
        b"rekorPublicKeyDatas",
        b"pki",
    ),
    runs=6000,
)
