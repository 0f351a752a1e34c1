# SPDX-License-Identifier: Apache-2.0
"""Documents of an entry that notice when they are changed: a digest of what they say is among what they say.

It guards against disks, not against people: whoever may write an entry may write its seal as well.  Pure.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Mapping
    from hashlib import sha256 as sha256_quick
    from typing import Any
else:
    try:  # a start hashes some kilobytes, and the OpenSSL below hashlib takes 3 ms to load
        from _sha256 import sha256 as sha256_quick
    except ImportError:  # Python 3.12 and later
        try:
            from _sha2 import sha256 as sha256_quick
        except ImportError:
            from hashlib import sha256 as sha256_quick

__all__ = ["SEAL", "digest_of", "opened", "sealed", "sha256_quick"]

SEAL = "seal"
_SINCE = ("root", "documents")
"""Fields that came with the seal: where one is, so must be a seal."""


def sealed(fields: Mapping[str, object]) -> bytes:
    """A JSON document of these fields and their seal."""
    return json.dumps({**fields, SEAL: _seal(fields)}, indent=1).encode() + b"\n"


def opened(raw: bytes) -> dict[str, Any]:
    """The fields of such a document, without the seal; older ones have none.

    Raises ValueError where it is none, or says something else than when it was sealed.
    """
    fields = json.loads(raw)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    seal = fields.pop(SEAL, None)
    if seal is None and not any(name in fields for name in _SINCE):
        return fields
    if seal != _seal(fields):
        raise ValueError("not what was written")
    return fields


def _seal(fields: Mapping[str, object]) -> str:
    return sha256_quick(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of(*documents: bytes) -> str:
    """One SHA-256 for several documents, hexadecimal; where one ends and the next begins counts."""
    return sha256_quick(b"".join(sha256_quick(document).digest() for document in documents)).hexdigest()
