# SPDX-License-Identifier: Apache-2.0
"""The digest of a stream, carried on by whichever thread has nothing better to do at the moment."""

from __future__ import annotations

import hashlib
import threading
from collections import deque


class Hashing:
    """Pieces are hashed in the order of add(), by one thread at a time."""

    def __init__(self, digest: str) -> None:
        self._hash = hashlib.new(digest.partition(":")[0])
        self._waiting: deque[bytes] = deque()
        self._turn = threading.Lock()

    def add(self, piece: bytes, most: int) -> None:
        """Leave a piece to whoever has time; where `most` wait already, nobody has, and the caller hashes."""
        self._waiting.append(piece)
        while len(self._waiting) > most:
            self._step(wait=True)

    def step(self) -> bool:
        """Hash one piece; False if none waits, or if another thread is at it."""
        return self._step(wait=False)

    def _step(self, *, wait: bool) -> bool:
        if not self._waiting or not self._turn.acquire(blocking=wait):
            return False
        try:
            if not self._waiting:
                return False
            self._hash.update(self._waiting[0])
            # Only now: finish() takes an empty queue for the end of the work.
            self._waiting.popleft()
        finally:
            self._turn.release()
        return True

    def finish(self) -> str:
        """The digest of all pieces, as ``sha256:…``; hashes those that still wait."""
        while self._waiting:
            self._step(wait=True)
        return f"{self._hash.name}:{self._hash.hexdigest()}"
