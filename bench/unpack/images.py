# SPDX-License-Identifier: Apache-2.0
"""Images to unpack: the demo's, and made ones of extreme shapes; each with gzip and with zstd layers.

The made ones are the same everywhere: their bytes come from one seed.  They are kept beside the images of the
demo and of the tests (tests/testbed/image.py), named by the hash of the code that makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bench.programs import demo_image
from tests.testbed import image as testbed
from tests.testbed.build import copy_image, open_to_all

SEED = 20
TIME = 1_700_000_000
GZIP_LEVEL, ZSTD_LEVEL = 6, 3
WORDS = b"def class return import self None True for in if else value data index name path string".split()
Pieces = Iterator[bytes]


@dataclass(frozen=True)
class Image:
    """References by compression: gzip, zstd."""

    name: str
    about: str
    references: dict[str, str]


def _text(source: random.Random, size: int) -> bytes:
    """What compresses as programs do, about 3 to 1."""
    made = bytearray()
    while len(made) < size:
        made += source.choice(WORDS) + b" %d" % source.randrange(1000) + b"( )\n"[source.randrange(4) :]
    return bytes(made[:size])


def _header(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, target: str = ""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode, info.linkname = size, kind, mode, target
    info.mtime = TIME + zlib.crc32(name.encode()) % 1_000_000
    return info.tobuf(tarfile.USTAR_FORMAT)


def _file(name: str, data: bytes, mode: int = 0o644) -> Pieces:
    yield _header(name, len(data), mode=mode)
    yield data
    yield bytes(-len(data) % 512)


def _package(source: random.Random, pool: bytes, top: str, files: int) -> Pieces:
    """One directory of a library: files of 0 to 4 KiB, now and then a link or a program."""
    yield _header(top, kind=tarfile.DIRTYPE, mode=0o755)
    for number in range(files):
        size = source.randrange(4097)
        start = source.randrange(len(pool) - size)
        mode = 0o755 if not number % 16 else 0o644
        yield from _file(f"{top}/module_{number:03d}.py", pool[start : start + size], mode)
    yield _header(f"{top}/latest.py", kind=tarfile.SYMTYPE, mode=0o777, target="module_000.py")


def _tree(source: random.Random, top: str, files: int) -> Pieces:
    """Files below top, 4 to 27 in a directory, 40 directories in one above."""
    pool = _text(source, 1 << 20)
    yield from (_header(above, kind=tarfile.DIRTYPE, mode=0o755) for above in _above(top))
    made = directory = 0
    while made < files:
        group = f"{top}/package_{directory // 40:03d}"
        if not directory % 40:
            yield _header(group, kind=tarfile.DIRTYPE, mode=0o755)
        count = min(files - made, source.randrange(4, 28))
        yield from _package(source, pool, f"{group}/part_{directory % 40:02d}", count)
        made, directory = made + count, directory + 1


def _above(top: str) -> list[str]:
    parts = top.split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def small_files() -> Iterator[Pieces]:
    """100,000 files in 3 layers."""
    for number, count in enumerate((50_000, 30_000, 20_000)):
        yield _tree(random.Random(SEED + number), f"usr/lib/layer_{number}", count)


def large_files() -> Iterator[Pieces]:
    """4 files of 256 MiB in 2 layers; a quarter of their bytes compresses not at all."""

    def layer(number: int) -> Pieces:
        source = random.Random(SEED + number)
        pool = _text(source, 4 << 20)
        for name in "ab":
            yield _header(f"data_{number}{name}", 256 << 20)
            for _ in range((256 << 20) // (64 << 10)):
                start = source.randrange(len(pool) - (48 << 10))
                yield pool[start : start + (48 << 10)] + source.randbytes(16 << 10)

    return (layer(number) for number in range(2))


def many_layers() -> Iterator[Pieces]:
    """40 layers of 150 small files."""
    return (_tree(random.Random(SEED + number), f"opt/layer_{number}", 150) for number in range(40))


MADE: dict[str, tuple[str, Callable[[], Iterator[Pieces]]]] = {
    "small": ("many small files", small_files),
    "large": ("few large files", large_files),
    "layers": ("many layers", many_layers),
}


def _add_blob(layout: Path, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _add_layer(layout: Path, pieces: Pieces) -> tuple[dict[str, object], str]:
    """Descriptor and diff_id of a gzip layer."""
    plain = hashlib.sha256()
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    parts = []
    for piece in chain(pieces, (bytes(1024),)):
        plain.update(piece)
        parts.append(packer.compress(piece))
    parts.append(packer.flush())
    media = "application/vnd.oci.image.layer.v1.tar+gzip"
    return {"mediaType": media, **_add_blob(layout, b"".join(parts))}, f"sha256:{plain.hexdigest()}"


def _write_layout(layout: Path, layers: Iterator[Pieces]) -> None:
    (layout / "blobs/sha256").mkdir(parents=True)
    made = [_add_layer(layout, pieces) for pieces in layers]
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in made]},
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", **_add_blob(layout, json.dumps(config).encode())},
        "layers": [layer for layer, _ in made],
    }
    named = {"org.opencontainers.image.ref.name": "latest"}
    entry = {"mediaType": f"{kind}.manifest.v1+json", **_add_blob(layout, json.dumps(manifest).encode())}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": named}]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _kept(key: str, make: Callable[[Path], None]) -> Path:
    """A layout of that name in the cache, made now if it is not there."""
    cache = testbed.where() / "bench"
    path = cache / key
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o755)
        scratch = Path(tempfile.mkdtemp(dir=cache))
        try:
            make(scratch / "layout")
            open_to_all(scratch / "layout")
            (scratch / "layout").rename(path)
        finally:
            shutil.rmtree(scratch)
    return path


def image(name: str) -> Image:
    """The image of that name: demo, or one of MADE.  Raises BenchError."""
    if name == "demo":
        gzip, about = demo_image(), "demo image"
        key = Path(gzip.removeprefix("oci:").rpartition(":")[0]).name
    else:
        about, layers = MADE[name]
        key = f"{name}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
        gzip = f"oci:{_kept(key, lambda layout: _write_layout(layout, layers()))}:latest"
    zstd = _kept(f"{key}-zstd", lambda layout: copy_image(gzip, f"oci:{layout}:latest", "zstd"))
    return Image(name, about, {"gzip": gzip, "zstd": f"oci:{zstd}:latest"})
