# SPDX-License-Identifier: Apache-2.0
"""OCI image layouts and tar archives written byte by byte.

No library for tar or OCI is used: they will not write the archives that a reader must refuse.  All is
deterministic, and all digests are right unless a test makes one wrong.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

BLOCK = 512
END = bytes(2 * BLOCK)
POSIX = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = bytes(8)
REF_NAME = "org.opencontainers.image.ref.name"

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_TYPES = {"none": LAYER, "gzip": f"{LAYER}+gzip", "zstd": f"{LAYER}+zstd"}

# --------------------------------------------------------------------------- tar


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """GNU's form for numbers that do not fit; negative ones too."""
    return (value & ((1 << (8 * width)) - 1) | 0x80 << (8 * (width - 1))).to_bytes(width, "big")


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    mtime: int | bytes = 1_000_000_000,
    link: bytes = b"",
    magic: bytes = POSIX,
    prefix: bytes = b"",
    checksum: bytes | None = None,
    pad: bytes = b"",
) -> bytes:
    """One header block.  Numbers given as bytes stand as they are."""
    parts = (
        name.ljust(100, b"\0"),
        mode if isinstance(mode, bytes) else octal(mode, 8),
        octal(0, 8),
        octal(0, 8),
        size if isinstance(size, bytes) else octal(size, 12),
        mtime if isinstance(mtime, bytes) else octal(mtime, 12),
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic,
        bytes(64 + 16),
        prefix.ljust(155, b"\0"),
        pad.ljust(12, b"\0"),
    )
    block = b"".join(parts)
    assert len(block) == BLOCK, [len(part) for part in parts]
    total = b"%06o\0 " % sum(block) if checksum is None else checksum
    return block[:148] + total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    return header(name, fields.pop("kind", b"0"), size=fields.pop("size", len(data)), **fields) + padded(data)


def directory(name: bytes, mode: int = 0o755, **fields: Any) -> bytes:
    return header(name, b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return header(name, b"2", link=target, mode=0o777, **fields)


def hardlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return header(name, b"1", link=target, **fields)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(b"%d %s=%s\n" % (length, key, value)):
        length = len(b"%d %s=%s\n" % (length, key, value))
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    data = records if isinstance(records, bytes) else b"".join(map(pax_record, records, records.values()))
    return file(b"pax", data, kind=kind)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return file(b"././@LongLink", name + b"\0", kind=kind, magic=GNU)


# --------------------------------------------------------------------------- compression


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


PACK: dict[str, Callable[[bytes], bytes]] = {"none": bytes, "gzip": gz, "zstd": zst}

# --------------------------------------------------------------------------- documents


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass
class Layer:
    """tar: plain bytes without END; blob: what lies in the layout, when it is not the honest compression."""

    tar: bytes
    compression: str = "gzip"
    end: bytes = END
    blob: bytes | None = None

    @property
    def plain(self) -> bytes:
        return self.tar + self.end

    @property
    def packed(self) -> bytes:
        return PACK[self.compression](self.plain) if self.blob is None else self.blob


@dataclass
class Image:
    """An image whose documents can be bent before they are hashed."""

    layers: Sequence[Layer]
    os: str = "linux"
    architecture: str = "amd64"
    config: dict[str, Any] = field(default_factory=lambda: {"Env": ["PATH=/bin"]})
    bend_config: Callable[[dict[str, Any]], Any] = lambda config: config
    bend_manifest: Callable[[dict[str, Any]], Any] = lambda manifest: manifest

    def blobs(self) -> tuple[bytes, dict[str, bytes]]:
        """The manifest's bytes, and all blobs by digest, the manifest among them."""
        config = {
            "os": self.os,
            "architecture": self.architecture,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer.plain) for layer in self.layers]},
        }
        config_bytes = as_json(self.bend_config(config))
        packed = [layer.packed for layer in self.layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config_bytes, CONFIG),
            "layers": [
                descriptor(blob, LAYER_TYPES[layer.compression])
                for blob, layer in zip(packed, self.layers, strict=True)
            ],
        }
        manifest_bytes = as_json(self.bend_manifest(manifest))
        return manifest_bytes, {digest(blob): blob for blob in (*packed, config_bytes, manifest_bytes)}


def as_json(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def image(*tars: bytes, compression: str = "gzip", **more: Any) -> Image:
    """An image of layers with these tar entries."""
    return Image([Layer(tar, compression) for tar in tars], **more)


def write_layout(
    path: Path,
    images: Image | Mapping[str, Image],
    *,
    bend_index: Callable[[dict[str, Any]], Any] = lambda index: index,
    more_blobs: Sequence[bytes] = (),
) -> Path:
    """Write an OCI layout directory.  images: by tag, or one without a tag."""
    named = {"": images} if isinstance(images, Image) else images
    entries = []
    blobs = {digest(blob): blob for blob in more_blobs}
    for tag, each in named.items():
        manifest, found = each.blobs()
        blobs |= found
        annotations = {"annotations": {REF_NAME: tag}} if tag else {}
        entries.append(descriptor(manifest, MANIFEST, **annotations))
    write_files(path, bend_index({"schemaVersion": 2, "manifests": entries}), blobs)
    return path


def write_files(path: Path, index: Any, blobs: Mapping[str, bytes]) -> None:
    """Write the files of a layout, readable by everybody whatever the umask."""
    (path / "blobs" / "sha256").mkdir(parents=True)
    for name, blob in blobs.items():
        (path / "blobs" / "sha256" / name.partition(":")[2]).write_bytes(blob)
    (path / "index.json").write_bytes(as_json(index))
    (path / "oci-layout").write_bytes(b'{"imageLayoutVersion": "1.0.0"}')
    for each in (path, *path.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)


def write_archive(path: Path, layout: Path, **fields: Any) -> Path:
    """Write the files of a layout directory as one tar file."""
    names = sorted(each.relative_to(layout) for each in layout.rglob("*") if each.is_file())
    entries = (_archived(f"./{name}".encode(), (layout / name).read_bytes(), fields) for name in names)
    path.write_bytes(b"".join(entries) + END)
    path.chmod(0o644)
    return path


def _archived(name: bytes, data: bytes, fields: Mapping[str, Any]) -> bytes:
    if len(name) > 100:
        return long_name(name) + file(name[:100], data, **fields)
    return file(name, data, **fields)
