# SPDX-License-Identifier: Apache-2.0
"""``aci:FILE``: an App Container Image as a source of the store (source.py says what that is).

The image ID is the sha512 of the uncompressed tar (appc spec 0.8, aci.md, "Image ID"), so a reference that
does not pin it costs one reading of the file; a second reading unpacks, and must give the same ID.
"""

from __future__ import annotations

import os

from hpcpod.errors import (
    HpcpodError,
    ImageInvalid,
    ImageLimitExceeded,
    ImageUnsupported,
)
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.aci import AciManifest, image_config, parse_aci_manifest, platform_for
from hpcpod.images.sources.filesource import FileSource, OwnBlob
from hpcpod.images.sources.layout import open_regular, read_at
from hpcpod.images.sources.manifest import Compression, Descriptor, Layer, parse_config
from hpcpod.images.sources.platforms import check_fits
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.source import Described, Part
from hpcpod.images.trust.facts import Signature, SignatureKind, Subject
from hpcpod.log import Progress, shown
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hpcpod.images.unpacking.apply import Applier
    from hpcpod.images.unpacking.layers import Unpacked
    from hpcpod.images.unpacking.pipeline import Budget

SIGNATURE_ENDING = ".asc"
SIGNATURE_MAX = 1 << 20
MEDIA_TYPE = "application/x-aci"
_MAGIC = (
    (b"\x1f\x8b", Compression.GZIP),
    (b"BZh", Compression.BZIP2),
    (b"\xfd7zXZ\0", Compression.XZ),
)
_MAGIC_BYTES = 6
_ENCRYPTED = (b"\x8c", b"\xc3", b"-----B")
"""How a message of OpenPGP begins: a symmetric key packet of either format (RFC 4880, 4.2), or armor."""


@frozen
class Scanned:
    """What the first reading found.  layer: the tar, as an image's one layer.  data: bytes of its files."""

    layer: Layer
    manifest: AciManifest
    manifest_bytes: bytes
    data: int


class AciSource(FileSource):
    """An App Container Image in a file.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        super().__init__(reference, limits)
        self._scanned: Scanned | None = None

    def find(self, platform: Platform) -> str:
        """The image ID of the file's content; a pin says what it has to be, and no reason to believe it."""
        return self._known or self._scan().layer.diff_id

    def describe(self, platform: Platform) -> Described:
        """The manifest, as a configuration of the image-spec; the bytes that gave it had the pinned ID."""
        scanned = self._scan()
        manifest = scanned.manifest
        if manifest.dependencies:
            raise ImageUnsupported(
                f"image {self.name}: depends on {shown(manifest.dependencies[0])}; that is not read",
                hint="an image that was rendered into one has none",
            )
        built_for = platform_for(manifest, platform)
        check_fits(built_for, platform, self.name)
        raw = image_config(manifest, built_for, scanned.layer.diff_id)
        config = parse_config(raw, f"{self.name}: configuration", self._limits)
        part = Part(scanned.layer.blob.digest, scanned.layer.compression.value, self._size)
        return Described(
            digest=scanned.layer.diff_id,
            parts=(part,),
            config=config,
            manifest_bytes=scanned.manifest_bytes,
            config_bytes=raw,
            details=(("ignored", manifest.app.ignored if manifest.app else ()),),
        )

    def subject(self, platform: Platform) -> Subject:
        """The file."""
        return self._subject(self.find(platform))

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """The file FILE.asc beside the image (appc spec 0.8, discovery.md), and the digest of the image."""
        path = f"{self._stamp.path}{SIGNATURE_ENDING}"
        if not os.path.lexists(path):
            return ()
        fd, status = open_regular(path, path, None, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if status.st_size > SIGNATURE_MAX:
                raise ImageLimitExceeded(f"{shown(path)}: {status.st_size} bytes, at most {SIGNATURE_MAX}")
            message = read_at(fd, SIGNATURE_MAX, 0, path)
        finally:
            os.close(fd)
        digest = self._scan().layer.blob.digest
        return (Signature(SignatureKind.DETACHED, message, shown(path), digest.encode()),)

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Unpack what lies below rootfs/ in the tar, as far as the manifest's white list lets it."""
        from hpcpod.images.unpacking.filling import filling
        from hpcpod.images.unpacking.layers import Unpacked
        from hpcpod.images.unpacking.pipeline import Budget

        scanned, budget = self._scan(), Budget(self._limits)
        with filling(directory, (scanned.data, self._size), self._limits, progress, readable) as applier:
            try:
                self._apply(scanned, applier, budget, progress)
            except ImageInvalid as error:
                raise self._named(error) from None
        return Unpacked(budget.used, applier.entries, applier.skipped, applier.disk)

    def _apply(self, scanned: Scanned, applier: Applier, budget: Budget, progress: Progress) -> None:
        from hpcpod.images.sources.acistream import AciTree
        from hpcpod.images.unpacking.pipeline import Cancelled, LayerPipeline
        from hpcpod.images.unpacking.tarstream import ByteStream

        with OwnBlob(self._fd, self._size, self._stamp.path) as blob:
            pipeline = LayerPipeline(scanned.layer, blob, self._limits, budget, progress.advance)
            try:
                stream = ByteStream(pipeline.chunks())
                applier.layer(AciTree(stream, self._limits, scanned.manifest.whitelist), lowest=True)
                pipeline.finish()
            except (HpcpodError, OSError, Cancelled) as error:
                raise pipeline.failed(error) from None
            finally:
                pipeline.close()

    def _scan(self) -> Scanned:
        """Read the file to its end, once; what it holds.  Raises ImageInvalid, ImageDigestMismatch."""
        if self._scanned is None:
            try:
                self._scanned = self._read()
            except (ImageInvalid, OSError) as error:
                raise self._named(error) from None
        return self._scanned

    def _read(self) -> Scanned:
        import hashlib

        from hpcpod.images.sources.acistream import AciScan
        from hpcpod.images.unpacking.decompress import RAW_CHUNK, decompress
        from hpcpod.images.unpacking.pipeline import Budget
        from hpcpod.images.unpacking.tarstream import ByteStream

        compression = self._compression()
        packed, plain, budget = hashlib.sha256(), hashlib.sha512(), Budget(self._limits)
        with OwnBlob(self._fd, self._size, self._stamp.path) as blob:
            raw = _hashed(blob.chunks(RAW_CHUNK), packed.update)
            chunks = _hashed(decompress(compression, raw, self._limits), plain.update, budget)
            scan = AciScan(ByteStream(chunks), self._limits)
            try:
                manifest_bytes = scan.read()
            except ImageInvalid:
                # Another image than the pinned one is the cause of whatever else is wrong with it.
                if self._pin and _is_whole(chunks):
                    self._check_pin(f"sha512:{plain.hexdigest()}")
                raise
        image_id = self._check_pin(f"sha512:{plain.hexdigest()}")
        stored = image_id if compression is Compression.NONE else f"sha256:{packed.hexdigest()}"
        return Scanned(
            Layer(Descriptor(MEDIA_TYPE, stored, self._size), compression, image_id),
            parse_aci_manifest(manifest_bytes, "manifest", self._limits),
            manifest_bytes,
            scan.data,
        )

    def _compression(self) -> Compression:
        start = read_at(self._fd, _MAGIC_BYTES, 0, self._stamp.path)
        for magic, compression in _MAGIC:
            if start.startswith(magic):
                return compression
        if start.startswith(_ENCRYPTED):
            raise ImageUnsupported(
                f"image {self.name}: encrypted, which is not read", hint="gpg -d decrypts it"
            )
        return Compression.NONE


def _is_whole(chunks: Iterator[bytes]) -> bool:
    """Read what is left; whether it could be read to the end."""
    try:
        for _ in chunks:
            pass
    except (HpcpodError, OSError):
        return False
    return True


def _hashed(
    chunks: Iterator[bytes], update: Callable[[bytes], None], budget: Budget | None = None
) -> Iterator[bytes]:
    """Hand chunks on, and count them on their way."""
    for chunk in chunks:
        update(chunk)
        if budget is not None:
            budget.spend(len(chunk))
        yield chunk
