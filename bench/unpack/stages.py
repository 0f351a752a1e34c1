# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.unpack.stages LAYER...``: what the libraries alone take for these bytes.

Each stage runs by itself in one thread, over bytes that are in memory, into one buffer that is used again:
sha256 of the blobs, decompression, sha256 of what comes out.  Prints them as JSON, seconds of CPU for each
layer.  These are the libraries that hpcpod uses; nothing faster is packaged for Python, and their code is C
and assembly throughout.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BUFFER = 1 << 20
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def _timed(work: Callable[[bytes], object], blob: bytes) -> float:
    start = time.process_time()
    work(blob)
    return time.process_time() - start


def _reader(blob: bytes) -> Callable[[bytearray], int]:
    if blob.startswith(ZSTD_MAGIC):
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True).readinto
    from isal import igzip

    return igzip.GzipFile(fileobj=io.BytesIO(blob)).readinto


def _drain(blob: bytes) -> None:
    read, buffer = _reader(blob), bytearray(BUFFER)
    while read(buffer):
        pass


def _pieces(blob: bytes) -> Iterator[memoryview]:
    """Plain bytes, as they lie in a cache when they were just decompressed."""
    read, buffer = _reader(blob), bytearray(BUFFER)
    view = memoryview(buffer)
    while count := read(buffer):
        yield view[:count]


def _hash_plain(blob: bytes) -> float:
    """Seconds for sha256 of the plain bytes; their decompression between the pieces is not counted."""
    digest, total = hashlib.sha256(), 0.0
    for piece in _pieces(blob):
        start = time.process_time()
        digest.update(piece)
        total += time.process_time() - start
    return total


def main(paths: list[str]) -> int:
    """Measure and print."""
    found: dict[str, list[float]] = {"sha256 of blobs": [], "decompress": [], "sha256 of layers": []}
    for path in paths:
        blob = Path(path).read_bytes()
        found["sha256 of blobs"].append(_timed(hashlib.sha256, blob))
        found["decompress"].append(_timed(_drain, blob))
        found["sha256 of layers"].append(_hash_plain(blob))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
