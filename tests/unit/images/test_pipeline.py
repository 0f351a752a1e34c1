# SPDX-License-Identifier: Apache-2.0
"""Layers through the threads: in order, whole, with the first cause of an error, and never far ahead."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from hpcpod.errors import HpcpodError, ImageDigestMismatch, ImageInvalid, ImageLimitExceeded
from hpcpod.frozen import replace
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.manifest import Compression, Descriptor, Layer
from hpcpod.images.unpacking.hashing import Hashing
from hpcpod.images.unpacking.pipeline import Budget, LayerPipeline, Pipeline
from tests.testbed.layouts import gz, zst

MIB = 1 << 20
SKIPPED = b"\x50\x2a\x4d\x18"
"""A skippable zstd frame (RFC 8878, section 3.1.2)."""


class Bytes:
    """A blob in memory.  fails: an error in place of its end."""

    def __init__(self, data: bytes, fails: BaseException | None = None) -> None:
        self.data = data
        self.fails = fails
        self.taken = 0
        self.open = 0

    def chunks(self, longest: int) -> Iterator[bytes]:
        for at in range(0, len(self.data), longest):
            piece = self.data[at : at + longest]
            self.taken += len(piece)
            yield piece
        if self.fails is not None:
            raise self.fails

    def close(self) -> None:
        self.open -= 1


class Image:
    """Layers in memory, and a pipeline over them."""

    def __init__(self, *blobs: tuple[Compression, bytes, bytes], limits: Limits = DEFAULT_LIMITS) -> None:
        self.blobs = [Bytes(packed) for _, packed, _ in blobs]
        self.layers = [_layer(*blob) for blob in blobs]
        self.limits = limits
        self.budget = Budget(limits)
        self.read = 0

    def start(self) -> Pipeline:
        return Pipeline(self.layers, self._open, self.limits, self.budget, self._advance)

    def _open(self, layer: Layer) -> Bytes:
        blob = self.blobs[self.layers.index(layer)]
        blob.open += 1
        return blob

    def _advance(self, count: int) -> None:
        self.read += count


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(compression: Compression, packed: bytes, plain: bytes) -> Layer:
    return Layer(Descriptor("", _sha256(packed), len(packed)), compression, _sha256(plain))


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _plain(size: int, seed: int = 0) -> tuple[Compression, bytes, bytes]:
    data = _noise(seed, size)
    return Compression.NONE, data, data


def _gzip(size: int, seed: int = 0) -> tuple[Compression, bytes, bytes]:
    data = _noise(seed, size // 2) + bytes(size - size // 2)
    return Compression.GZIP, gz(data), data


def _zstd(size: int, seed: int = 0) -> tuple[Compression, bytes, bytes]:
    data = _noise(seed, size // 2) + bytes(size - size // 2)
    return Compression.ZSTD, zst(data), data


def _first_error(pipeline: Pipeline, layers: int) -> tuple[int, BaseException]:
    """Which layer fails, and the error to report."""
    for number in range(layers):
        try:
            for _ in pipeline.chunks():
                pass
            pipeline.finish()
        except (HpcpodError, OSError) as error:
            return number, pipeline.failed(error)
    raise AssertionError("nothing failed")


def _settled(image: Image) -> int:
    """Bytes read when the threads have come to rest."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5:
        if image.read != seen:
            seen, since = image.read, time.monotonic()
        time.sleep(0.02)
    return seen


@pytest.fixture(params=["one core", "all cores"])
def cores(request: pytest.FixtureRequest) -> Iterator[None]:
    """How many cores there are decides which threads hash."""
    before = os.sched_getaffinity(0)
    if request.param == "one core":
        os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.usefixtures("cores")
def test_layers_come_in_order_and_whole() -> None:
    shapes = [_gzip(9 * MIB), _plain(0), _zstd(11 * MIB, 1), _plain(3 * MIB, 2), _gzip(10, 3), _zstd(1, 4)]
    image = Image(*shapes)
    pipeline = image.start()
    for _, _, plain in shapes:
        assert b"".join(pipeline.chunks()) == plain
        pipeline.finish()
    pipeline.close()
    assert image.budget.used == sum(len(plain) for _, _, plain in shapes)
    assert image.read == sum(len(packed) for _, packed, _ in shapes)
    assert [blob.open for blob in image.blobs] == [0] * len(shapes)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("make", [_gzip, _zstd, _plain])
def test_a_changed_blob_is_the_cause_of_what_it_does(make: object) -> None:
    """In the compressed data it breaks the decompressor, in a plain one only the digest."""
    assert callable(make)
    for at in (0, 5 * MIB):
        image = Image(_plain(3 * MIB), make(20 * MIB, 1), _gzip(9 * MIB, 2))
        data = bytearray(image.blobs[1].data)
        data[at] ^= 0xFF
        image.blobs[1].data = bytes(data)
        pipeline = image.start()
        number, error = _first_error(pipeline, 3)
        pipeline.close()
        assert number == 1
        assert type(error) is ImageDigestMismatch
        assert _sha256(bytes(data)) in str(error)
        assert image.blobs[1].taken == len(data)
        assert all(not blob.open for blob in image.blobs)


def test_a_tar_of_another_digest() -> None:
    image = Image(_gzip(3 * MIB), _zstd(9 * MIB))
    image.layers[0] = replace(image.layers[0], diff_id=_sha256(b"another"))
    pipeline = image.start()
    number, error = _first_error(pipeline, 2)
    pipeline.close()
    assert (number, type(error)) == (0, ImageDigestMismatch)
    assert "diff_id" in str(error)


def test_the_consumers_error_stays_unless_the_blob_is_wrong() -> None:
    for changed in (False, True):
        image = Image(_gzip(30 * MIB), _gzip(MIB, 1))
        if changed:
            image.blobs[0].data += b"\0"
        pipeline = image.start()
        next(pipeline.chunks())
        error = pipeline.failed(ImageInvalid("tar: is none"))
        pipeline.close()
        assert type(error) is (ImageDigestMismatch if changed else ImageInvalid)
        assert image.blobs[0].taken == len(image.blobs[0].data)
        assert not image.blobs[0].open


def test_errors_ahead_wait_for_their_turn() -> None:
    """The next layer is broken in every way; the present one's bytes and its own error come first."""
    for present in (True, False):
        image = Image(_plain(MIB), (Compression.GZIP, b"no gzip", b""), _plain(MIB, 2))
        image.blobs[1].fails = OSError(errno.EIO, "gone")
        if not present:
            image.layers[0] = replace(image.layers[0], diff_id=_sha256(b"another"))
        pipeline = image.start()
        _settled(image)
        number, error = _first_error(pipeline, 3)
        pipeline.close()
        assert number == int(present)
        assert type(error) is (ImageInvalid if present else ImageDigestMismatch)


def test_a_blob_that_cannot_be_read() -> None:
    image = Image(_plain(MIB), _plain(3 * MIB, 1))
    image.blobs[1].fails = OSError(errno.EIO, "gone")
    pipeline = image.start()
    number, error = _first_error(pipeline, 2)
    pipeline.close()
    assert number == 1
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO


def test_a_blob_that_cannot_be_opened() -> None:
    image = Image(_plain(MIB))

    def refuse(layer: Layer) -> Bytes:
        raise ImageDigestMismatch(f"blob {layer.blob.digest}: has 0 bytes")

    pipeline = Pipeline(image.layers, refuse, image.limits, image.budget, lambda _: None)
    number, error = _first_error(pipeline, 1)
    pipeline.close()
    assert (number, type(error)) == (0, ImageDigestMismatch)
    assert "has 0 bytes" in str(error)


@pytest.mark.parametrize("surplus", [0, 1])
def test_what_all_layers_yield_is_limited_exactly(surplus: int) -> None:
    sizes = [3 * MIB, 5 * MIB, 2 * MIB]
    limits = Limits(bytes_out=sum(sizes) - surplus)
    image = Image(*(_gzip(size, number) for number, size in enumerate(sizes)), limits=limits)
    pipeline = image.start()
    if surplus:
        number, error = _first_error(pipeline, 3)
        assert (number, type(error)) == (2, ImageLimitExceeded)
    else:
        for _ in sizes:
            assert sum(map(len, pipeline.chunks()))
            pipeline.finish()
    pipeline.close()


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("kind", ["large", "small", "skipped", "tiny pieces"])
def test_nobody_runs_far_ahead_of_the_consumer(kind: str) -> None:
    """Whatever the layers look like, some megabytes wait and no more."""
    empty = SKIPPED + (2 * MIB).to_bytes(4, "little") + bytes(2 * MIB)
    blobs = {
        "large": [_plain(80 * MIB)],
        "small": [_plain(2 * MIB)] * 60,
        "skipped": [(Compression.ZSTD, empty, b"")] * 60,
        "tiny pieces": [(Compression.GZIP, gz(b"x") * 300_000, b"x" * 300_000)],
    }[kind]
    image = Image(*blobs)
    pipeline = image.start()
    ahead = _settled(image)
    waiting = [part.blob._waiting for part in pipeline._parts]
    assert sum(map(len, (piece for pieces in waiting for piece in pieces))) <= 8 * MIB
    if kind != "skipped":  # those leave nothing behind that could wait
        assert ahead <= 14 * MIB
    pipeline.close()
    assert all(not blob.open for blob in image.blobs)


def test_closed_in_the_middle() -> None:
    for taken in (0, 1, 4):
        image = Image(_gzip(30 * MIB), _zstd(30 * MIB, 1))
        pipeline = image.start()
        chunks = pipeline.chunks()
        for _ in range(taken):
            next(chunks)
        pipeline.close()
        assert image.read < 30 * MIB
        assert all(not blob.open for blob in image.blobs)


def test_a_lent_blob_stays_open() -> None:
    compression, packed, plain = _gzip(3 * MIB)
    blob = Bytes(packed)
    layer = _layer(compression, packed, plain)
    pipeline = LayerPipeline(layer, blob, DEFAULT_LIMITS, Budget(DEFAULT_LIMITS), lambda _: None)
    assert b"".join(pipeline.chunks()) == plain
    pipeline.finish()
    pipeline.close()
    assert not blob.open  # it was never opened here, and not closed either


def test_many_threads_hash_in_order() -> None:
    pieces = [_noise(number, 4096 + number) for number in range(500)]
    for most in (0, 3, 1000):
        hashing = Hashing(_sha256(b""))
        over = threading.Event()

        def help_out(hashing: Hashing = hashing, over: threading.Event = over) -> None:
            while not over.is_set():
                hashing.step()

        helpers = [threading.Thread(target=help_out) for _ in range(3)]
        for helper in helpers:
            helper.start()
        for piece in pieces:
            hashing.add(piece, most)
        found = hashing.finish()
        over.set()
        for helper in helpers:
            helper.join()
        assert found == _sha256(b"".join(pieces))


def test_pieces_that_wait_are_bounded_by_whoever_adds() -> None:
    hashing = Hashing(_sha256(b""))
    lengths = []
    for _ in range(20):
        hashing.add(bytes(10), 4)
        lengths.append(len(hashing._waiting))
    assert lengths == [1, 2, 3, *[4] * 17]
