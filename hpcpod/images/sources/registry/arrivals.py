# SPDX-License-Identifier: Apache-2.0
"""Fetching the layers of one image: several at once, each gone on with after a cut, from any place.

The order of beginning is that of unpacking, so the lowest layer can be unpacked while it still arrives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from hpcpod.errors import ImageDigestMismatch, StoreFull
from hpcpod.images.sources.manifest import Descriptor
from hpcpod.images.sources.registry.blobs import Arriving, ArrivingContent
from hpcpod.images.sources.registry.challenge import content_range
from hpcpod.images.sources.registry.client import Client
from hpcpod.images.sources.registry.documents import RegistryDocuments
from hpcpod.images.sources.registry.failures import trouble_of
from hpcpod.images.sources.registry.patience import Patience
from hpcpod.images.sources.registry.places import Stopped
from hpcpod.images.sources.registry.trouble import Failed, Trouble, error_for, final

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from urllib3.response import BaseHTTPResponse

CONNECTIONS = 4
"""Layers that are fetched at once."""
STEP = 256 << 10
"""Bytes that are read at once."""
END_SECONDS = 2.0
"""How long a thread is waited for that is to end; it ends by itself when its connection does."""


class Arrivals:
    """The layers of an image on their way: an Origin (walk.py), and a context manager.

    directory: where the files are.  tick: called now and then by whoever waits.  full: the error for one of
    the operating system's while a file was written.
    """

    def __init__(
        self,
        documents: RegistryDocuments,
        layers: tuple[Descriptor, ...],
        directory: str,
        tick: Callable[[], None],
        full: Callable[[OSError], Exception],
    ) -> None:
        self.name = documents.name
        self._documents = documents
        self._places = documents.places
        self._tick = tick
        self._full = full
        # One of each digest: an image may have the same layer twice.
        self._blobs = {layer.digest: Arriving(layer, directory) for layer in layers}
        self._sources: dict[str, set[Client]] = {digest: set() for digest in self._blobs}
        self._bad: dict[str, set[Client]] = {digest: set() for digest in self._blobs}
        self._mended: set[str] = set()
        self._stopping = threading.Event()
        self._waiting: list[Arriving] = []
        self._threads: list[threading.Thread] = []
        self._responses: dict[int, BaseHTTPResponse] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Begin fetching."""
        self.fetch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what is there stays, for another pull to go on with, unless the disk is full."""
        self._stop()
        for blob in self._blobs.values():
            if isinstance(error, StoreFull) and not blob.complete:
                blob.discard()
            blob.close()

    def fetch(self) -> None:
        """Fetch all layers that are not complete."""
        self._begin([blob for blob in self._blobs.values() if not blob.complete])

    def _begin(self, blobs: list[Arriving]) -> None:
        with self._lock:
            self._waiting[:0] = blobs
        for _ in range(min(CONNECTIONS, len(blobs))):
            thread = threading.Thread(target=self._work, daemon=True)
            self._threads.append(thread)
            thread.start()

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A document."""
        return self._documents.read_blob(descriptor)

    def open_blob(self, descriptor: Descriptor) -> ArrivingContent:
        """A layer, to be read while it arrives.  Raises ImageDigestMismatch."""
        blob = self._blobs[descriptor.digest]
        if blob.descriptor.size != descriptor.size:
            raise ImageDigestMismatch(
                f"blob {descriptor.digest}: named with {descriptor.size} and {blob.descriptor.size} bytes"
            )
        return blob.reader(self._tick)

    def forget(self) -> None:
        """Remove all files: the image is unpacked."""
        for thread in self._threads:  # all has come, but a last file may be without its name yet
            thread.join()
        for blob in self._blobs.values():
            blob.discard()

    def mend(self) -> bool:
        """After a digest that was wrong: drop each layer that is, and fetch it again, elsewhere.

        Returns whether there was one.  Raises ImageDigestMismatch where nobody is left to ask.
        """
        wrong = [
            blob for digest, blob in self._blobs.items() if blob.complete and blob.found_digest() != digest
        ]
        for blob in wrong:
            digest, found = blob.descriptor.digest, blob.found_digest()
            senders, self._sources[digest] = self._sources[digest], set()
            # What an earlier pull, or several places, had a part in is nobody's fault yet.
            if (blob.fresh and len(senders) == 1) or digest in self._mended:
                self._bad[digest] |= senders
            self._mended.add(digest)
            if self._bad[digest].issuperset(self._places.clients()):
                blob.discard()
                hosts = ", ".join(sorted(client.place.host for client in self._bad[digest]))
                raise ImageDigestMismatch(
                    f"image {self.name}: blob {digest}: has digest {found}, as fetched from {hosts}",
                    hint="the registry, or what stands before it, does not give what its manifest promises",
                )
            blob.restart()
        self._begin(wrong)
        return bool(wrong)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._stopping.is_set():
                    return
                blob = self._waiting.pop(0)
            try:
                self._fetch(blob)
            except OSError as error:
                blob.fail(self._full(error))
            except BaseException as error:  # whatever it is: a reader waits for this blob
                blob.fail(error)

    def _fetch(self, blob: Arriving) -> None:
        """Fetch one layer, or what is missing of it.  Raises HpcpodError, Stopped, OSError."""
        if not blob.opened:
            blob.open()
        failures = []
        digest = blob.descriptor.digest
        for client in self._places.clients():
            if blob.complete:
                return
            if client in self._bad[digest]:
                continue
            trouble = self._from_place(blob, client)
            if trouble is None:
                blob.finish()
                return
            failures.append(Failed(client.place, trouble))
            self._places.demote(client)
        if not blob.complete:
            size = blob.descriptor.size
            raise error_for(f"image {self.name}: blob {digest} ({blob.have} of {size} bytes)", failures)

    def _from_place(self, blob: Arriving, client: Client) -> Trouble | None:
        """None when all of it has come; else why the place was given up."""
        tries = self._places.tries(self._stopping)
        ranges = True
        while blob.have < blob.descriptor.size:
            before = blob.have
            try:
                self._transfer(blob, client, ranges=ranges)
            except Trouble as trouble:
                if self._stopping.is_set():
                    raise Stopped from None
                if blob.have - before >= self._places.patience.progress:
                    tries.anew()
                if before and ranges and not trouble.again:
                    ranges = False  # it may be the range that it did not like
                    continue
                given_up = tries.wait(client.place.host, trouble)
                if given_up is not None:
                    return given_up
        return None

    def _transfer(self, blob: Arriving, client: Client, *, ranges: bool) -> None:
        """Ask for what is missing, once, and write what comes.  Raises Trouble, OSError."""
        size, start = blob.descriptor.size, blob.have
        headers = {"Range": f"bytes={start}-{size - 1}"} if start and ranges else {}
        response = client.get(f"blobs/{blob.descriptor.digest}", headers)
        me = threading.get_ident()
        with self._lock:
            self._responses[me] = response
        try:
            skip = _skipped(response, start, size)
            self._sources[blob.descriptor.digest].add(client)
            _copy(response, blob, skip, self._places.patience, self._stopping)
        finally:
            with self._lock:
                del self._responses[me]
            response.close()

    def _stop(self) -> None:
        self._stopping.set()
        with self._lock:
            self._waiting.clear()
            for response in self._responses.values():
                with suppress(ValueError, RuntimeError, OSError):
                    response.shutdown()
        until = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def _skipped(response: BaseHTTPResponse, start: int, size: int) -> int:
    """Bytes of an answer that are there already.  Raises Trouble where it is not what was asked for."""
    announced = response.headers.get("content-length", "")
    length = int(announced[:19]) if announced.isascii() and announced.isdigit() else None
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise final("encodes a blob, which nobody asked for")
    if response.status == 206:
        span = content_range(response.headers.get("content-range", ""))
        if span is None or span[0] != start or span[1] >= size or span[2] not in (None, size):
            raise final(
                f"answers another part than bytes {start} to {size - 1} of {size}", ImageDigestMismatch
            )
        return 0
    if length is not None and length != size:
        raise final(f"its blob has {length} bytes, expected {size}", ImageDigestMismatch)
    return start  # it knows no ranges


def _copy(
    response: BaseHTTPResponse, blob: Arriving, skip: int, patience: Patience, stopping: threading.Event
) -> None:
    """Write what comes, up to what was promised.  Raises Trouble, Stopped, OSError of the file."""
    import urllib3

    size = blob.descriptor.size
    count, begun = 0, time.monotonic()
    while blob.have < size:
        try:
            chunk = response.read1(STEP)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise trouble_of(error, patience) from None
        if stopping.is_set():
            raise Stopped
        if not chunk:
            break
        count += len(chunk)
        fresh = chunk[skip:]
        skip = max(0, skip - len(chunk))
        blob.write(fresh[: size - blob.have])
        now = time.monotonic()
        if now - begun >= patience.slow_seconds:
            if count < patience.slowest * (now - begun):
                raise Trouble(f"sends less than {patience.slowest} bytes a second")
            count, begun = 0, now
    if blob.have < size:
        raise Trouble(f"connection ended after {blob.have} of {size} bytes")
