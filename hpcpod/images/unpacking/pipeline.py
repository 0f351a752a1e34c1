# SPDX-License-Identifier: Apache-2.0
"""Layers from their blobs to plain bytes, hashed on the way, on several threads.

One thread reads the blobs, one decompresses, and the consumer, who writes files, is the third; the C code
of all of them releases the interpreter's lock.  Both digests are hashed by whoever would have to wait
otherwise (hashing.py): on two cores that keeps two threads busy, where four would wait for a core in turn.
The first two go on to the next layer while the consumer is still busy with this one.  Between them are queues
of a few megabytes, so memory depends neither on the size of a layer nor on their number.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from hpcpod.errors import ImageDigestMismatch, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import Compression, Layer
from hpcpod.images.unpacking.decompress import OUT_CHUNK, RAW_CHUNK, decompress
from hpcpod.images.unpacking.hashing import Hashing
from hpcpod.kernel import keep_freed_memory

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

QUEUED = 4
"""Pieces of full size that may wait between two threads, or to be hashed."""
PIECE_COST = 4096
"""Bytes that a piece counts for beside its own: many tiny ones take memory, too."""
_FEW_CORES = 2


class Cancelled(Exception):
    """The other end of a queue has given up."""


class Blob(Protocol):
    """Where a layer's compressed bytes come from."""

    def chunks(self, longest: int) -> Iterator[bytes]:
        """The content in pieces."""

    def close(self) -> None:
        """No more is wanted."""


class _End:
    """Comes behind the last piece of a layer.  error: why there are no more; None where all is well."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Lane:
    """A bounded queue of pieces between two threads.

    most: bytes from which on put() waits.  fill, drain: do a little other work, if there is some, instead of
    waiting in put() and in take(); they return whether they did.
    """

    def __init__(self, most: int, fill: Callable[[], bool], drain: Callable[[], bool]) -> None:
        self._condition = threading.Condition()
        self._items: deque[bytes | _End] = deque()
        self._most = most
        self._held = 0
        self._fill = fill
        self._drain = drain
        self._cancelled = False

    def put(self, item: bytes | _End) -> None:
        """Append.  Raises Cancelled."""
        while self._held >= self._most and not self._cancelled and self._fill():
            pass
        with self._condition:
            while self._held >= self._most and not self._cancelled:
                self._condition.wait()
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._held += _weight(item)
            self._condition.notify()

    def take(self) -> bytes | _End:
        """The next.  Raises Cancelled."""
        while not self._items and not self._cancelled and self._drain():
            pass
        with self._condition:
            while not self._items and not self._cancelled:
                self._condition.wait()
            if self._cancelled:
                raise Cancelled
            item = self._items.popleft()
            self._held -= _weight(item)
            self._condition.notify()
            return item

    def cancel(self) -> None:
        """Wake everybody up; put() and take() raise Cancelled from now on."""
        with self._condition:
            self._cancelled = True
            self._items.clear()
            self._condition.notify_all()

    def pieces(self) -> Iterator[bytes]:
        """Those up to the layer's end.  Raises Cancelled, and the error of the thread that puts."""
        while True:
            item = self.take()
            if not isinstance(item, _End):
                yield item
            elif item.error is None:
                return
            else:
                raise item.error


def _weight(item: bytes | _End) -> int:
    return PIECE_COST if isinstance(item, _End) else PIECE_COST + len(item)


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


_Pieces = Generator[bytes, None, None]


class _Part:
    """What is known of one layer.  pieces: its blob's bytes, read and hashed as far as they were taken."""

    def __init__(
        self, layer: Layer, open_blob: Callable[[Layer], Blob], advance: Callable[[int], None]
    ) -> None:
        self.layer = layer
        self.blob = Hashing(layer.blob.digest)
        # A plain tar is its blob, whose digest is computed anyway.
        same = layer.compression is Compression.NONE and layer.diff_id == layer.blob.digest
        self.plain = None if same else Hashing(layer.diff_id)
        self.pieces = self._read(open_blob, advance)
        self._whole = False

    def _read(self, open_blob: Callable[[Layer], Blob], advance: Callable[[int], None]) -> _Pieces:
        blob = open_blob(self.layer)
        try:
            for piece in blob.chunks(RAW_CHUNK):
                self.blob.add(piece, QUEUED)
                advance(len(piece))
                yield piece
            self._whole = True
        finally:
            blob.close()

    def step(self) -> bool:
        """Hash a piece, if one waits."""
        return (self.plain is not None and self.plain.step()) or self.blob.step()

    def check_blob(self) -> None:
        """Compare the blob's digest, if all of it was read.  Raises ImageDigestMismatch."""
        if self._whole and (found := self.blob.finish()) != self.layer.blob.digest:
            raise ImageDigestMismatch(f"layer {self.layer.blob.digest}: its blob has digest {found}")

    def check_plain(self) -> None:
        """Compare the digest of what came out.  Raises ImageDigestMismatch."""
        if self.plain is not None and (found := self.plain.finish()) != self.layer.diff_id:
            raise ImageDigestMismatch(
                f"layer {self.layer.blob.digest}: its tar has digest {found}, "
                f"its diff_id is {self.layer.diff_id}"
            )


class Pipeline:
    """Threads that turn layers, one after the other, into checked plain bytes.

    For each layer in turn, iterate over chunks() to its end, then call finish(): only when that returns was
    every byte of blob and tar what the image's documents promised.  close() ends the threads whatever
    happened.  open_blob and the blobs are used by one thread of the pipeline's own, in order, some
    megabytes ahead of what chunks() has given out; advance is told from there what was read.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        open_blob: Callable[[Layer], Blob],
        limits: Limits,
        budget: Budget,
        advance: Callable[[int], None],
    ) -> None:
        keep_freed_memory()
        self._limits = limits
        self._budget = budget
        self._parts = [_Part(layer, open_blob, advance) for layer in layers]
        self._present = 0
        # Two threads keep two cores busy; a third that hashes would take one from the decompressor.
        reader_hashes = len(os.sched_getaffinity(0)) > _FEW_CORES
        self._raw = Lane(QUEUED * RAW_CHUNK, self._hash if reader_hashes else _nothing, self._hash)
        self._plain = Lane(QUEUED * OUT_CHUNK, self._hash, self._hash)
        works = (self._read, self._decompress)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def chunks(self) -> Iterator[bytes]:
        """Plain bytes of the present layer, not verified yet.

        Raises ImageInvalid and its kinds, and OSError from reading the blob.
        """
        for piece in self._plain.pieces():
            self._budget.spend(len(piece))
            yield piece

    def finish(self) -> None:
        """Compare the present layer's digests, and go on to the next.  Raises ImageDigestMismatch."""
        part = self._parts[self._present]
        part.check_blob()
        part.check_plain()
        self._present += 1

    def failed(self, error: BaseException) -> BaseException:
        """The error to report when reading chunks() or using them raised `error`; ends the threads.

        A blob of the wrong digest comes first: it is the cause of whatever a decompressor or tar reader
        stumbled over.
        """
        self._stop()
        part = self._parts[self._present]
        try:
            for _ in part.pieces:
                pass
            part.check_blob()
        except ImageDigestMismatch as mismatch:
            return mismatch
        except Exception:  # the rest cannot be read: nothing more is known about the blob
            return error
        return error

    def close(self) -> None:
        """End the threads, also in the middle of their work."""
        self._stop()
        for part in self._parts:
            part.pieces.close()

    def _stop(self) -> None:
        self._raw.cancel()
        self._plain.cancel()
        for thread in self._threads:
            thread.join()

    def _hash(self) -> bool:
        """Hash one piece, of the present layer or of the next one, if one waits."""
        present = self._present
        return any(part.step() for part in self._parts[present : present + 2])

    def _read(self) -> None:
        for number, part in enumerate(self._parts):
            if not _pass_on(part.pieces, self._raw):
                return
            if number > self._present:
                # Nobody else hashes for layers far ahead, and pieces that wait for it take memory.
                part.blob.finish()

    def _decompress(self) -> None:
        for part in self._parts:
            if not _pass_on(self._plain_of(part), self._plain):
                return
        while self._hash():
            pass

    def _plain_of(self, part: _Part) -> Iterator[bytes]:
        raw = self._raw.pieces()
        for piece in decompress(part.layer.compression, raw, self._limits):
            if part.plain is not None:
                part.plain.add(piece, QUEUED)
            yield piece
        for _ in raw:  # whatever the format made of it, what comes next is the next layer's
            pass


class LayerPipeline(Pipeline):
    """The same for one layer, whose blob is the caller's to close."""

    def __init__(
        self, layer: Layer, blob: Blob, limits: Limits, budget: Budget, advance: Callable[[int], None]
    ) -> None:
        super().__init__((layer,), lambda _: _Lent(blob), limits, budget, advance)


class _Lent:
    """A blob that stays open."""

    def __init__(self, blob: Blob) -> None:
        self.chunks = blob.chunks

    def close(self) -> None:
        """Leave that to its owner."""


def _nothing() -> bool:
    return False


def _pass_on(pieces: Iterator[bytes], lane: Lane) -> bool:
    """Put a layer's pieces, then its end with what went wrong, if anything; whether to go on."""
    end = _End()
    try:
        try:
            for piece in pieces:
                lane.put(piece)
        except Cancelled:
            raise
        except BaseException as error:  # whatever it is: the other threads wait for this one
            end = _End(error)
        lane.put(end)
    except Cancelled:
        return False
    return end.error is None
