# SPDX-License-Identifier: Apache-2.0
"""Index, manifest and configuration documents of an image (image-spec 1.1; Docker's schema 2 by its names).

Bytes in, frozen facts out; whoever calls has checked the bytes' digest and size before.
"""

from __future__ import annotations

from enum import Enum

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown
from hpcpod.model import ImageConfig, Platform

REF_NAME = "org.opencontainers.image.ref.name"
SCHEMA_VERSION = 2

_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."
INDEX_TYPES = frozenset({f"{_OCI}index.v1+json", f"{_DOCKER}distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({f"{_OCI}manifest.v1+json", f"{_DOCKER}distribution.manifest.v2+json"})
CONFIG_TYPES = frozenset({f"{_OCI}config.v1+json", f"{_DOCKER}container.image.v1+json"})


class Compression(Enum):
    """How a tar is stored: the first three are for layers, the last two for App Container Images."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"


LAYER_TYPES = {
    f"{_OCI}layer.v1.tar": Compression.NONE,
    f"{_OCI}layer.v1.tar+gzip": Compression.GZIP,
    f"{_OCI}layer.v1.tar+zstd": Compression.ZSTD,
    f"{_OCI}layer.nondistributable.v1.tar": Compression.NONE,
    f"{_OCI}layer.nondistributable.v1.tar+gzip": Compression.GZIP,
    f"{_OCI}layer.nondistributable.v1.tar+zstd": Compression.ZSTD,
    f"{_DOCKER}image.rootfs.diff.tar": Compression.NONE,
    f"{_DOCKER}image.rootfs.diff.tar.gzip": Compression.GZIP,
    f"{_DOCKER}image.rootfs.foreign.diff.tar.gzip": Compression.GZIP,
}


@frozen
class Descriptor:
    """A typed, sized, content-addressed pointer (image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    tag: str = ""


@frozen
class Layer:
    """One layer: its blob, and the digest of the tar within."""

    blob: Descriptor
    compression: Compression
    diff_id: str


@frozen
class Manifest:
    """An image manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@frozen
class ConfigDocument:
    """An image configuration: what starting needs, and what verification needs."""

    config: ImageConfig
    platform: Platform
    diff_ids: tuple[str, ...]


def parse_index(raw: bytes, what: str, media_type: str | None, limits: Limits) -> tuple[Descriptor, ...]:
    """Entries of an image index.  Raises ImageInvalid.

    media_type: what its descriptor says, None for index.json, which has none.
    """
    fields = Fields(parse_object(raw, what, limits), what)
    _check_kind(fields, media_type, INDEX_TYPES, forbidden=("layers", "config", "fsLayers"))
    return tuple(
        _descriptor(child) for child in fields.children("manifests", "descriptors", limits.descriptors)
    )


def parse_manifest(raw: bytes, what: str, media_type: str, limits: Limits) -> Manifest:
    """An image manifest.  Raises ImageInvalid."""
    fields = Fields(parse_object(raw, what, limits), what)
    _check_kind(fields, media_type, MANIFEST_TYPES, forbidden=("manifests", "fsLayers"))
    config = _descriptor(fields.child("config"))
    if config.media_type not in CONFIG_TYPES:
        raise ImageInvalid(
            f"{what}: config of type {shown(config.media_type)}, expected {_OCI}config.v1+json",
            hint="this is an artifact of another kind, not a container image",
        )
    layers = fields.children("layers", "layers", limits.layers)
    return Manifest(config, tuple(_descriptor(child) for child in layers))


def _check_kind(
    fields: Fields, media_type: str | None, allowed: frozenset[str], forbidden: tuple[str, ...]
) -> None:
    """Index and manifest must not be mistaken for one another: GHSA-xmmx-7jpf-fx42 (CVE-2021-41190)."""
    if not fields.has("schemaVersion") or fields.number("schemaVersion") != SCHEMA_VERSION:
        fields.fail("schemaVersion", str(SCHEMA_VERSION))
    body = fields.text("mediaType", "")
    if body and body not in allowed:
        fields.fail("mediaType", " or ".join(sorted(allowed)))
    if body and media_type is not None and body != media_type:
        fields.fail("mediaType", f"{media_type}, as its descriptor says, got {shown(body)}")
    for key in forbidden:
        if fields.has(key):
            raise ImageInvalid(f"{fields.what}: has {key}, which belongs to another kind of document")


def _descriptor(fields: Fields) -> Descriptor:
    digest = fields.text("digest")
    if not is_digest(digest):
        fields.fail("digest", f"sha256 or sha512 in hexadecimal, got {shown(digest)}")
    platform = None
    if fields.has("platform"):
        values = fields.child("platform")
        platform = Platform(values.text("os"), values.text("architecture"), values.text("variant", ""))
    tag = dict(fields.mapping("annotations")).get(REF_NAME, "")
    return Descriptor(fields.text("mediaType"), digest, fields.number("size"), platform, tag)


def parse_config(raw: bytes, what: str, limits: Limits) -> ConfigDocument:
    """An image configuration.  Raises ImageInvalid."""
    fields = Fields(parse_object(raw, what, limits), what)
    platform = Platform(fields.text("os"), fields.text("architecture"), fields.text("variant", ""))
    rootfs = fields.child("rootfs")
    if rootfs.text("type") != "layers":
        rootfs.fail("type", "layers")
    diff_ids = rootfs.texts("diff_ids")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            rootfs.fail("diff_ids", f"sha256 or sha512 digests, got {shown(diff_id)}")
    config = _config(fields.child("config")) if fields.has("config") else ImageConfig()
    _check_words(config, what, limits)
    return ConfigDocument(config, platform, diff_ids)


def _config(fields: Fields) -> ImageConfig:
    environment = []
    for word in fields.texts("Env"):
        name, equals, value = word.partition("=")
        if not name or not equals:
            fields.fail("Env", f"NAME=VALUE, got {shown(word)}")
        environment.append((name, value))
    return ImageConfig(
        env=tuple(environment),
        entrypoint=fields.texts("Entrypoint"),
        cmd=fields.texts("Cmd"),
        workdir=fields.text("WorkingDir", ""),
        user=fields.text("User", ""),
        labels=fields.mapping("Labels"),
        volumes=fields.keys("Volumes"),
    )


def _check_words(config: ImageConfig, what: str, limits: Limits) -> None:
    """What becomes environment and arguments of a program, and words of a plan, is bounded."""
    pairs = (*config.env, *config.labels)
    single = (*config.entrypoint, *config.cmd, *config.volumes)
    count = len(pairs) + len(single)
    if count > limits.config_words:
        raise ImageLimitExceeded(
            f"{what}: {count} variables, arguments, labels and volumes, "
            f"limit config_words {limits.config_words}"
        )
    size = sum(len(word.encode()) for word in (*single, *(word for pair in pairs for word in pair)))
    if size > limits.config_bytes:
        raise ImageLimitExceeded(
            f"{what}: variables, arguments, labels and volumes of {size} bytes, "
            f"limit config_bytes {limits.config_bytes}"
        )


def layers_of(manifest: Manifest, config: ConfigDocument, what: str) -> tuple[Layer, ...]:
    """Layers with their diff_ids, lowest first.  Raises ImageInvalid."""
    if len(manifest.layers) != len(config.diff_ids):
        raise ImageInvalid(
            f"{what}: {len(manifest.layers)} layers, but {len(config.diff_ids)} diff_ids in its config"
        )
    layers = []
    for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        compression = LAYER_TYPES.get(blob.media_type)
        if compression is None:
            raise ImageInvalid(
                f"{what}: layer of type {shown(blob.media_type)} cannot be read",
                hint="known: tar, tar+gzip and tar+zstd layers, not encrypted",
            )
        layers.append(Layer(blob, compression, diff_id))
    return tuple(layers)


def check_json_size(descriptor: Descriptor, what: str, limits: Limits) -> None:
    """Refuse, before reading, a document that is larger than any honest one.  Raises ImageLimitExceeded."""
    if descriptor.size > limits.json_bytes:
        raise ImageLimitExceeded(
            f"{what}: {descriptor.size} bytes of JSON, limit json_bytes {limits.json_bytes}"
        )
