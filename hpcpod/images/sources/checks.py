# SPDX-License-Identifier: Apache-2.0
"""Checks that a user may switch off, each by its name, as rkt's ``--insecure-options`` did.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hpcpod.errors import UsageError

SIGNATURE = "signature"
"""Whether somebody whom a policy names has signed the image."""
TLS = "tls"
"""Whether a registry's certificate is good."""
HTTP = "http"
"""Whether a registry speaks TLS at all."""
CHECKS = (SIGNATURE, TLS, HTTP)


def parse_checks(texts: Iterable[str], what: str) -> frozenset[str]:
    """The checks in lists of names separated by commas.  Raises UsageError."""
    found = frozenset(name for text in texts for name in text.split(","))
    for name in sorted(found):
        if name not in CHECKS:
            raise UsageError(f"{what} {name or repr(name)}: unknown", hint=f"of: {', '.join(CHECKS)}")
    return found
