# SPDX-License-Identifier: Apache-2.0
"""Numbers and tags that only somebody who means ill would write end in one line, or do no harm."""

from __future__ import annotations

import json

import pytest

from hpcpod.errors import TrustUnusable, UsageError
from hpcpod.images.sources.registry.auth import DAY, Authorizer
from hpcpod.images.sources.registry.conf import parse_conf
from hpcpod.images.sources.registry.lookaside import parse_lookasides
from hpcpod.images.trust import payload

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize("seconds", ["1" * 400, "1e999", "NaN", "-5", "0", '"many"', "true", "null", "[]"])
def test_how_long_a_token_is_good(seconds: str) -> None:
    authorizer = object.__new__(Authorizer)
    token = authorizer._parsed(b'{"token": "abc", "expires_in": %s}' % seconds.encode(), 0.0)
    assert token.header == "Bearer abc"
    assert 0 < token.until <= DAY


def test_a_number_without_end_in_registries_conf() -> None:
    with pytest.raises(UsageError, match=r"registries\.conf"):
        parse_conf(b"credential-helpers = " + b"1" * 5000, "/etc/containers/registries.conf")


@pytest.mark.parametrize("value", ["!!bool foo", "!!timestamp foo", "!!int ''", "!!float x", "!!binary 1"])
def test_tags_in_registries_d(value: str) -> None:
    with pytest.raises(TrustUnusable, match=r"x\.yaml"):
        parse_lookasides(f"docker: {{h.example: {{lookaside: {value}}}}}".encode(), "/etc/x.yaml")


@pytest.mark.parametrize("stamp", ["1e999", "NaN", "1.5", "1" * 400])
def test_when_a_signature_was_made(stamp: str) -> None:
    critical = {
        "type": payload.COSIGN,
        "image": {"docker-manifest-digest": DIGEST},
        "identity": {"docker-reference": "h.example/a"},
    }
    document = json.dumps({"critical": critical, "optional": {"timestamp": 0}})
    with pytest.raises(payload.PayloadError):
        payload.parse_claim(document.replace(": 0}", f": {stamp}}}").encode(), payload.COSIGN)
