# SPDX-License-Identifier: Apache-2.0
"""How what is not a file is reached."""

from __future__ import annotations

from hpcpod.frozen import frozen
from hpcpod.log import Progress, Silent

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Mapping


@frozen
class Access:
    """What a source of a registry is given.

    environment: of whoever asks: where credentials and configuration lie, proxies.  insecure: checks that
    were switched off by name: ``tls`` (certificates), ``http`` (registries without TLS).  blobs: directory
    on the store's disk where blobs wait for being unpacked, and stay when a pull fails; empty for none.
    progress: told what is waited for before there is anything to unpack.
    """

    environment: Mapping[str, str]
    insecure: frozenset[str] = frozenset()
    blobs: str = ""
    progress: Progress = Silent()


NO_ACCESS = Access({})
"""For what is a file."""
