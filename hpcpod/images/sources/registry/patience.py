# SPDX-License-Identifier: Apache-2.0
"""How long a registry is waited for, and how often it is asked again.  Pure."""

from __future__ import annotations

from hpcpod.frozen import frozen


@frozen
class Patience:
    """Seconds, unless it is said otherwise.

    connect: until a connection stands.  silence: without a byte of an answer, then it is cut.  header: until
    the head of an answer is complete.  document: until a document is complete.  tries: of one request at one
    registry.  pause, longest_pause: before the second try, and before any; they double.  longest_wait: that
    Retry-After may ask for; a registry that asks for more is given up.  slowest: bytes a second of a layer,
    over `slow_seconds`; below that the connection is made anew.  progress: bytes of a layer after which a cut
    connection counts as another first try.
    """

    connect: float = 10.0
    silence: float = 30.0
    header: float = 60.0
    document: float = 60.0
    tries: int = 5
    pause: float = 0.5
    longest_pause: float = 15.0
    longest_wait: float = 60.0
    slowest: int = 1024
    slow_seconds: float = 60.0
    progress: int = 16 << 20


DEFAULT_PATIENCE = Patience()


def pause_before(tries: int, asked: float | None, fraction: float, patience: Patience) -> float | None:
    """Seconds to wait after so many tries that failed; None where the registry asks for too long a wait.

    asked: by Retry-After, or None.  fraction: 0 to 1, by chance: nodes that failed together shall not come
    back together.
    """
    if asked is not None:
        if asked > patience.longest_wait:
            return None
        return asked + fraction * min(1.0, patience.pause)
    doubled: float = patience.pause * 2 ** min(tries - 1, 30)
    return min(doubled, patience.longest_pause) * (0.5 + fraction / 2)
