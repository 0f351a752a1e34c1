# SPDX-License-Identifier: Apache-2.0
"""``docker-archive:FILE``: what ``docker save`` writes, as a source of the store.

At its top a ``manifest.json`` lists images: a configuration, whose digest is the image's ID and names it
here, layers, and the names that the image had (Docker Image Specification 1.2, "Combined Image JSON +
Filesystem Changeset Format").  Layers are verified by the configuration's diff_ids.  They are plain tars, or
compressed; older versions of Docker store one layer once and link to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from hpcpod.errors import ImageDigestMismatch, ImageInvalid, ImageLimitExceeded, ImageNotFound
from hpcpod.frozen import frozen
from hpcpod.images.dockername import DockerName, parse_name
from hpcpod.images.limits import Limits
from hpcpod.images.sources.archive import SeekingStream, hint_for
from hpcpod.images.sources.filesource import FileSource
from hpcpod.images.sources.layout import Blob, OpenLayout
from hpcpod.images.sources.manifest import Compression, ConfigDocument, Descriptor, Layer, parse_config
from hpcpod.images.sources.platforms import check_fits
from hpcpod.images.sources.reference import Reference, is_digest
from hpcpod.images.sources.source import Described, Part
from hpcpod.images.sources.walk import LISTED, Documents
from hpcpod.images.strictjson import parse_objects
from hpcpod.images.trust.facts import Subject
from hpcpod.images.unpacking.names import normal_name
from hpcpod.images.unpacking.tarstream import Kind, TarReader
from hpcpod.log import Progress, shown
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from hpcpod.images.unpacking.layers import Unpacked

MANIFEST = "manifest.json"
_NAME_MAX = 255
"""Bytes of a member's name that is remembered; those of Docker, Podman and skopeo have less than 90."""
_LINKS = 8
_MAGIC = (
    (b"\x1f\x8b", Compression.GZIP),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
    (b"BZh", Compression.BZIP2),
    (b"\xfd7zXZ\0", Compression.XZ),
)


@frozen
class Member:
    """A file of the archive.  link: the member that holds its content, empty for its own."""

    offset: int
    size: int
    link: str


@frozen
class SavedImage:
    """One image of manifest.json.  config, layers: names of members."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


class DockerArchiveSource(FileSource):
    """An image of a file of ``docker save``.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        super().__init__(reference, limits)
        self._tag = reference.tag
        self._documents: Documents | None = None
        self._blobs: dict[str, Member] = {}
        self._config: tuple[SavedImage, bytes, str] | None = None
        try:
            self._members = dict(self._walk())
        except (ImageInvalid, OSError) as error:
            named = self._named(error)
            named.hint = hint_for(self._fd, self._stamp.path) or named.hint
            self.close()
            raise named from None

    def _walk(self) -> Iterator[tuple[str, Member]]:
        """Files and links that manifest.json can name."""
        stream = SeekingStream(self._fd, self._size, self._stamp.path)
        seen: set[str] = set()
        for count, entry in enumerate(TarReader(stream, self._limits)):
            if count >= self._limits.archive_members:
                raise ImageLimitExceeded(f"limit archive_members {self._limits.archive_members}")
            if entry.kind not in (Kind.FILE, Kind.SYMLINK, Kind.HARDLINK):
                continue
            name = os.fsdecode(normal_name(entry.name, self._limits))
            if len(name) > _NAME_MAX or len(entry.link) > _NAME_MAX:
                continue  # nobody asks for it: it takes no memory
            if name in seen:
                raise ImageInvalid(f"{shown(name)} occurs twice")
            seen.add(name)
            link = ""
            if entry.kind is not Kind.FILE:
                above = name.rpartition("/")[0] if entry.kind is Kind.SYMLINK else ""
                link = _joined(above, os.fsdecode(entry.link))
            yield name, Member(stream.offset, entry.size, link)

    def _member(self, name: str) -> Member:
        """The file that a name means, links followed.  Raises ImageInvalid."""
        path = _joined("", name)
        for _ in range(_LINKS):
            found = self._members.get(path)
            if found is None:
                raise ImageInvalid(f"no file {shown(path)} in it")
            if not found.link:
                return found
            path = found.link
        raise ImageInvalid(f"{shown(name)} is a link to a link, and so on")

    def _read(self, name: str) -> bytes:
        member = self._member(name)
        if member.size > self._limits.json_bytes:
            raise ImageLimitExceeded(
                f"{shown(name)}: {member.size} bytes of JSON, limit json_bytes {self._limits.json_bytes}"
            )
        raw = os.pread(self._fd, member.size, member.offset)
        if len(raw) != member.size:
            raise ImageDigestMismatch(f"{shown(name)}: has become shorter")
        return raw

    # ----------------------------------------------------------------------- which image

    def _images(self) -> tuple[SavedImage, ...]:
        if MANIFEST not in self._members:
            layout = "index.json" in self._members
            raise ImageNotFound(
                f"image {self._name}: no {MANIFEST} in it",
                hint="it is an OCI layout: write oci-archive:…" if layout else "docker save writes one",
            )
        listed = parse_objects(self._read(MANIFEST), MANIFEST, "descriptors", self._limits)
        return tuple(
            SavedImage(fields.text("Config"), fields.texts("Layers"), fields.texts("RepoTags"))
            for fields in listed
        )

    def _chosen(self) -> SavedImage:
        """The image that the reference means.  Raises ImageNotFound."""
        images = self._images()
        if self._tag.startswith("@"):
            number = int(self._tag[1:])
            if number >= len(images):
                raise ImageNotFound(
                    f"image {self._name}: no image {number}, it holds {len(images)} from 0 on"
                )
            return images[number]
        if not self._tag:
            if len(images) == 1:
                return images[0]
            raise ImageNotFound(
                f"image {self._name}: holds {len(images)} images, the reference must say which: "
                f"{_listed(images)}",
                hint="docker-archive:FILE:NAME:TAG, or docker-archive:FILE:@N, counted from 0",
            )
        wanted = _full(self._tag)
        found = [image for image in images if wanted in map(_full, image.names)]
        if len({image.config for image in found}) != 1:
            what = "several images" if found else "no image"
            raise ImageNotFound(
                f"image {self._name}: {what} {shown(str(wanted))} in it, only {_listed(images)}",
                hint="docker-archive:FILE:@N takes the N-th, counted from 0",
            )
        return found[0]

    def _read_config(self) -> tuple[SavedImage, bytes, str]:
        """The image, its configuration, and that one's digest.  Raises ImageInvalid and its kinds."""
        if self._config is None:
            import hashlib

            try:
                image = self._chosen()
                raw = self._read(image.config)
                digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
                said = _digest_in(image.config)
                if said not in ("", digest):
                    raise ImageDigestMismatch(f"config {shown(image.config)}: has digest {digest}")
            except (ImageInvalid, OSError) as error:
                raise self._named(error) from None
            self._config = image, raw, digest
        return self._config

    # ----------------------------------------------------------------------- what a source does

    def find(self, platform: Platform) -> str:
        """The image's ID: the digest of its configuration."""
        return self._read_config()[2]

    def describe(self, platform: Platform) -> Described:
        """The configuration, and the layers that it says."""
        image, raw, digest = self._read_config()
        try:
            config = parse_config(raw, f"config {shown(image.config)}", self._limits)
            check_fits(config.platform, platform, self.name)
            layers = self._found(image, config)
            manifest = self._read(MANIFEST)
        except (ImageInvalid, OSError) as error:
            raise self._named(error) from None
        self._documents = Documents(Descriptor("", digest, len(raw)), layers, config, manifest, raw)
        parts = tuple(Part(layer.blob.digest, layer.compression.value, layer.blob.size) for layer in layers)
        return Described(
            digest=digest,
            parts=parts,
            config=config,
            manifest_bytes=manifest,
            config_bytes=raw,
            details=(("names", tuple(map(shown, image.names))),),
        )

    def _found(self, image: SavedImage, config: ConfigDocument) -> tuple[Layer, ...]:
        count = len(image.layers)
        if count > self._limits.layers:
            raise ImageLimitExceeded(f"{count} layers, limit layers {self._limits.layers}")
        if count != len(config.diff_ids):
            raise ImageInvalid(f"{count} layers, but {len(config.diff_ids)} diff_ids in its config")
        layers = []
        for name, diff_id in zip(image.layers, config.diff_ids, strict=True):
            member = self._member(name)
            start = os.pread(self._fd, min(6, member.size), member.offset)
            compression = next((kind for magic, kind in _MAGIC if start.startswith(magic)), Compression.NONE)
            said = _digest_in(name)
            if compression is Compression.NONE:
                stored = diff_id
                if said not in ("", diff_id):
                    raise ImageDigestMismatch(f"layer {shown(name)}: its diff_id is {diff_id}")
            else:
                stored = said if name.startswith("blobs/") and said else self._hash(member)
            self._blobs[f"blobs/{stored.replace(':', '/')}"] = member
            layers.append(Layer(Descriptor("", stored, member.size), compression, diff_id))
        return tuple(layers)

    def _hash(self, member: Member) -> str:
        """Of a compressed layer whose digest nobody says: what is read again to unpack must be the same."""
        import hashlib

        digest = hashlib.sha256()
        for chunk in self._blob(member).chunks(1 << 20):
            digest.update(chunk)
        return f"sha256:{digest.hexdigest()}"

    def _blob(self, member: Member) -> Blob:
        return Blob(self._fd, member.offset, member.size)

    def subject(self, platform: Platform) -> Subject:
        """Scopes: none, as containers-policy.json(5) says of this transport."""
        return Subject(self._transport, (), identity="", digest=self.find(platform))

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Unpack the layers."""
        from hpcpod.images.unpacking.layers import unpack_layers

        assert self._documents is not None, "describe() comes first"
        layout = OpenLayout(self, self._name, self._limits)
        return unpack_layers(layout, self._documents, directory, self._limits, progress, readable)

    def open_file(self, name: str) -> Blob:
        """A layer by the name that it has in an OCI layout: a descriptor of the same open file."""
        member = self._blobs[name]
        return Blob(os.dup(self._fd), member.offset, member.size)


def _joined(above: str, target: str) -> str:
    """The member that a link names, from the directory that it lies in.  Raises ImageInvalid."""
    parts = above.split("/") if above else []
    if target.startswith("/"):
        raise ImageInvalid(f"{shown(target)} is outside the archive")
    for part in target.split("/"):
        if part == "..":
            if not parts:
                raise ImageInvalid(f"{shown(target)} is outside the archive")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _digest_in(name: str) -> str:
    """The digest that a name says its content has: ``HEX.json``, ``HEX.tar``, ``blobs/sha256/HEX``."""
    head, _, last = name.rpartition("/")
    if head not in ("", "blobs/sha256"):
        return ""
    digits, _, ending = last.partition(".")
    digest = f"sha256:{digits.removeprefix('sha256:')}"
    return digest if is_digest(digest) and ending in ("", "json", "tar") else ""


def _full(name: str) -> DockerName | None:
    """A name with everything that it may leave out, as Docker takes it; None for what is none."""
    found = parse_name(name, short=False)
    if found is None or found.digest:
        return None
    return DockerName(found.host, found.path, found.tag or "latest")


def _listed(images: tuple[SavedImage, ...]) -> str:
    names = [shown(name) for image in images for name in image.names] or ["images without a name"]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
