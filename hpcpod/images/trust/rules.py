# SPDX-License-Identifier: Apache-2.0
"""Prefix rules, as `hpcpod trust add` writes them: one JSON file for each prefix.  Pure.

A trust directory holds ``rules/NAME.json``, ``keys/FINGERPRINT.pgp`` or ``.pem``, ``revoked/FINGERPRINT``.
"""

from __future__ import annotations

import json

from hpcpod.errors import HpcpodError, TrustUnusable, UsageError
from hpcpod.frozen import frozen
from hpcpod.images.dockername import parse_name, plain_host
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.strictjson import parse_object
from hpcpod.images.trust.identity import is_prefix
from hpcpod.images.trust.keys import parse_fingerprint
from hpcpod.log import shown

TRANSPORTS = ("docker", "aci", "sif")
"""Those whose images have signatures that are read here."""
KEYS_MAX = 64


@frozen
class Rule:
    """Images below this prefix need signatures by `threshold` of these keys.

    prefix: a scope of containers-policy.json(5).  keys: fingerprints.  named: a signature that names no
    image does not count.
    """

    transport: str
    prefix: str
    keys: tuple[str, ...]
    threshold: int = 1
    named: bool = False


def file_name(transport: str, prefix: str) -> str:
    """The name of a rule's file: a prefix may be longer than a name, and holds slashes."""
    import hashlib

    return hashlib.sha256(f"{transport}\0{prefix}".encode()).hexdigest()[:32] + ".json"


def key_file(fingerprint: str) -> str:
    """The name of a key's file."""
    algorithm, colon, digits = fingerprint.partition(":")
    return f"{digits}.pem" if colon else f"{algorithm}.pgp"


def revoked_file(fingerprint: str) -> str:
    """The name of the file that says that a key is revoked."""
    return fingerprint.replace(":", "-")


def revoked_fingerprint(name: str) -> str | None:
    """What such a file revokes; None for a name that means nothing."""
    return parse_fingerprint(name.replace("-", ":", 1))


def rule_bytes(rule: Rule) -> bytes:
    """The file."""
    document = {"version": 1, **vars(rule), "keys": list(rule.keys)}
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_rule(raw: bytes, what: str) -> Rule:
    """The rule in a file's bytes; `what` names it in errors.  Raises TrustUnusable."""
    try:
        found = parse_object(raw, what, DEFAULT_LIMITS)
    except HpcpodError as error:
        raise TrustUnusable(error.message, hint=_HINT) from None
    expected = {
        "version": int,
        "transport": str,
        "prefix": str,
        "keys": list,
        "threshold": int,
        "named": bool,
    }
    for key, value in found.items():
        if key not in expected or type(value) is not expected[key]:
            raise TrustUnusable(f"{what}: field {shown(key)}: unknown, or of a wrong type", hint=_HINT)
    missing = [key for key in expected if key not in found]
    if missing or found["version"] != 1:
        raise TrustUnusable(f"{what}: expected version 1 with all of its fields", hint=_HINT)
    keys = found["keys"]
    if not 0 < len(keys) <= KEYS_MAX or len(set(map(str, keys))) != len(keys):
        raise TrustUnusable(f"{what}: keys: expected 1 to {KEYS_MAX} different ones", hint=_HINT)
    if any(not isinstance(key, str) or parse_fingerprint(key) != key for key in keys):
        raise TrustUnusable(f"{what}: keys: expected fingerprints", hint=_HINT)
    if not 0 < found["threshold"] <= len(keys):
        raise TrustUnusable(f"{what}: threshold: expected 1 to {len(keys)}", hint=_HINT)
    try:
        check_prefix(found["transport"], found["prefix"])
    except UsageError as error:
        raise TrustUnusable(f"{what}: {error.message}", hint=_HINT) from None
    return Rule(found["transport"], found["prefix"], tuple(keys), found["threshold"], found["named"])


_HINT = "hpcpod trust add writes such files"


def check_prefix(transport: str, prefix: str) -> None:
    """Raise UsageError unless an image can lie below this prefix: what matches nothing protects nothing."""
    if transport not in TRANSPORTS:
        raise UsageError(
            f"transport {shown(transport)}: expected one of {', '.join(TRANSPORTS)}",
            hint="images of others have no signatures that are read here; policy.json can reject them",
        )
    if not prefix.isprintable():
        raise UsageError(f"prefix {shown(prefix)}: expected printable characters")
    if transport != "docker":
        parts = prefix.split("/")
        if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
            raise UsageError(f"prefix {shown(prefix)}: expected an absolute path, not /, without // and ..")
        return
    host = prefix.partition("/")[0]
    if plain_host(host) != host:
        raise UsageError(
            f"prefix {shown(prefix)}: its host is not spelt as in names of images",
            hint=f"write {shown(plain_host(host))}",
        )
    if prefix.startswith("*."):
        if not is_prefix(prefix[2:]) or "/" in prefix or ":" in prefix:
            raise UsageError(f"prefix {shown(prefix)}: expected *.DOMAIN", hint="*.example.com, say")
        return
    name = parse_name(prefix, short=True)
    if not is_prefix(prefix) and (name is None or not name.host or not (name.tag or name.digest)):
        raise UsageError(
            f"prefix {shown(prefix)}: expected HOST[:PORT][/PATH[:TAG]]",
            hint="the host is needed: docker.io/library/debian, not debian",
        )
