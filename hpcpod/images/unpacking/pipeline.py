# SPDX-License-Identifier: Apache-2.0
"""One layer from its blob to plain bytes, hashed on the way, on several threads.

Reading and hashing the blob, decompressing, hashing what comes out, and the consumer (who writes files)
each run on a thread of their own; the C code of all of them releases the interpreter's lock.  Between
them are queues of a few chunks, so memory does not depend on the layer's size.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from hpcpod.errors import ImageDigestMismatch, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import Compression, Layer
from hpcpod.images.sources.walk import Content
from hpcpod.images.unpacking.decompress import RAW_CHUNK, decompress
from hpcpod.kernel import keep_freed_memory

QUEUED = 4
"""Chunks that may wait between two threads."""


class Cancelled(Exception):
    """The other end of a queue has given up."""


class Channel:
    """A bounded queue of chunks that each of several readers sees in full."""

    def __init__(self, readers: int) -> None:
        self._condition = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._first = 0
        self._positions = [0] * readers
        self._closed = False
        self._cancelled = False

    def put(self, chunk: bytes) -> None:
        """Append, waiting for the slowest reader.  Raises Cancelled."""
        with self._condition:
            while len(self._chunks) >= QUEUED and not self._cancelled:
                self._condition.wait()
            if self._cancelled:
                raise Cancelled
            self._chunks.append(chunk)
            self._condition.notify_all()

    def close(self) -> None:
        """Nothing will be put any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def cancel(self) -> None:
        """Wake everybody up; put() and read() raise Cancelled from now on."""
        with self._condition:
            self._cancelled = True
            self._condition.notify_all()

    def read(self, reader: int) -> Iterator[bytes]:
        """The chunks, for the reader of this number.  Raises Cancelled."""
        while (chunk := self._take(reader)) is not None:
            yield chunk

    def _take(self, reader: int) -> bytes | None:
        with self._condition:
            while True:
                if self._cancelled:
                    raise Cancelled
                index = self._positions[reader] - self._first
                if index < len(self._chunks):
                    break
                if self._closed:
                    return None
                self._condition.wait()
            chunk = self._chunks[index]
            self._positions[reader] += 1
            while self._first < min(self._positions):
                self._chunks.popleft()
                self._first += 1
                self._condition.notify_all()
            return chunk


class Budget:
    """Counts the bytes that all layers of an image yield."""

    def __init__(self, limits: Limits) -> None:
        self.used = 0
        self._limit = limits.bytes_out

    def spend(self, count: int) -> None:
        """Raises ImageLimitExceeded."""
        self.used += count
        if self.used > self._limit:
            raise ImageLimitExceeded(
                f"image: unpacks to more than bytes_out {self._limit} bytes",
                hint="--max-bytes raises the limit, as does bytes_out in the table [limits] of hpcpod.toml",
            )


class LayerPipeline:
    """Threads that turn a layer's blob into checked plain bytes.

    Iterate over chunks(), then call finish(): only when it returns was every byte of blob and tar what the
    image's documents promised.  close() ends the threads whatever happened.
    """

    def __init__(
        self, layer: Layer, blob: Content, limits: Limits, budget: Budget, advance: Callable[[int], None]
    ) -> None:
        keep_freed_memory()
        self._layer = layer
        self._blob = blob
        self._limits = limits
        self._budget = budget
        self._advance = advance
        self._raw = Channel(1)
        self._plain = Channel(2)
        self._failures: list[BaseException] = []
        self._abandoned = False
        self._blob_digest = ""
        self._diff_id = ""
        works = (self._read, self._decompress, self._hash)
        self._threads = [threading.Thread(target=self._guard, args=(work,), daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def chunks(self) -> Iterator[bytes]:
        """Plain bytes of the layer, not verified yet.  Raises Cancelled when a thread failed."""
        return self._plain.read(0)

    def finish(self) -> None:
        """Wait for the threads, compare digests.  Raises ImageDigestMismatch or a thread's error."""
        for thread in self._threads:
            thread.join()
        for failure in self._failures:
            raise failure
        self._check_blob()
        if self._diff_id != self._layer.diff_id:
            raise ImageDigestMismatch(
                f"layer {self._layer.blob.digest}: its tar has digest {self._diff_id}, "
                f"its diff_id is {self._layer.diff_id}"
            )

    def failed(self, error: BaseException) -> BaseException:
        """The error to report when reading chunks() raised `error`.

        A blob of the wrong digest comes first: it is the cause of whatever a decompressor or tar reader
        stumbled over.  What the disk refused is no fault of the blob's: the rest of it is not waited for.
        """
        if isinstance(error, OSError):
            self._abandon()
        self._stop()
        try:
            self._check_blob()
        except ImageDigestMismatch as mismatch:
            return mismatch
        if isinstance(error, Cancelled) and self._failures:
            return self._failures[0]
        return error

    def close(self) -> None:
        """End the threads, also in the middle of their work."""
        self._abandon()
        self._stop()

    def _abandon(self) -> None:
        """What is still to come of the blob is not wanted, not even for its digest."""
        self._abandoned = True
        self._blob.interrupt()

    def _stop(self) -> None:
        self._raw.cancel()
        self._plain.cancel()
        for thread in self._threads:
            thread.join()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Cancelled:
            self._plain.cancel()
        except BaseException as error:  # whatever it is: the other threads wait for this one
            self._failures.append(error)
            self._raw.cancel()
            self._plain.cancel()

    def _read(self) -> None:
        """Read and hash the blob; goes on hashing when nobody wants the bytes any more."""
        digest = _hasher(self._layer.blob.digest)
        wanted = True
        for chunk in self._blob.chunks(RAW_CHUNK):
            if wanted:
                try:
                    self._raw.put(chunk)
                except Cancelled:
                    wanted = False
            digest.update(chunk)
            self._advance(len(chunk))
            if self._abandoned:
                return
        self._blob_digest = _named(digest)
        self._raw.close()

    def _decompress(self) -> None:
        raw = self._raw.read(0)
        for chunk in decompress(self._layer.compression, raw, self._limits):
            self._budget.spend(len(chunk))
            self._plain.put(chunk)
        self._plain.close()

    def _hash(self) -> None:
        same = self._layer.compression is Compression.NONE and self._layer.diff_id == self._layer.blob.digest
        if same:
            # The tar is the blob, whose digest the reading thread computes.
            for _ in self._plain.read(1):
                pass
            self._diff_id = self._layer.diff_id
            return
        digest = _hasher(self._layer.diff_id)
        for chunk in self._plain.read(1):
            digest.update(chunk)
        self._diff_id = _named(digest)

    def _check_blob(self) -> None:
        if self._blob_digest and self._blob_digest != self._layer.blob.digest:
            raise ImageDigestMismatch(
                f"layer {self._layer.blob.digest}: its blob has digest {self._blob_digest}"
            )


def _hasher(digest: str) -> hashlib._Hash:
    return hashlib.new(digest.partition(":")[0])


def _named(digest: hashlib._Hash) -> str:
    return f"{digest.name}:{digest.hexdigest()}"
