# SPDX-License-Identifier: Apache-2.0
"""Manifests of App Container Images (appc spec 0.8, aci.md): bytes in, frozen facts out.

What is checked is what the specification's own schema package checks, and that programs cannot read one
manifest in two ways (strictjson).  Fields that rkt acted on and a pod does not are listed in
docs/reference/images.md: isolators, ports, event handlers, supplementary groups.
"""

from __future__ import annotations

import json

from hpcpod.errors import ImageInvalid
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable

KIND = "ImageManifest"
TITLE = "org.opencontainers.image.title"
"""The label of a configuration that holds the image's name."""
_PATHS = 1_000_000
_IGNORED = ("eventHandlers", "isolators", "ports", "supplementaryGIDs")
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_NOT_FIRST = frozenset(("", *"0123456789.-"))
_SEPARATORS = frozenset("-._~/")
_ARCHITECTURES = {
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "ppc64": ("ppc64", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    # Not in the specification's list, which is from 2018; uname(2)'s names, as its others are.
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
"""Labels.go of the specification: its names for architectures, and Go's."""


@frozen
class App:
    """How to execute the image.

    user, group: names, numbers, or a path whose owner is meant.  ignored: fields that it has and a pod does
    not act on.
    """

    exec: tuple[str, ...]
    user: str
    group: str
    workdir: str
    environment: tuple[tuple[str, str], ...]
    mount_points: tuple[str, ...]
    ignored: tuple[str, ...]


@frozen
class AciManifest:
    """An image manifest.

    os, architecture, variant: empty where the image does not depend on them; Go's names.
    dependencies: names of the images below this one.  whitelist: paths without leading slash that alone are
    in the tree, None for all.
    """

    name: str
    version: str
    os: str
    architecture: str
    variant: str
    labels: tuple[tuple[str, str], ...]
    annotations: tuple[tuple[str, str], ...]
    app: App | None
    dependencies: tuple[str, ...]
    whitelist: frozenset[bytes] | None


def parse_aci_manifest(raw: bytes, what: str, limits: Limits) -> AciManifest:
    """The manifest of an image.  Raises ImageInvalid, ImageLimitExceeded."""
    fields = Fields(parse_object(raw, what, limits), what)
    if fields.text("acKind") != KIND:
        fields.fail("acKind", f"{KIND}, got {shown(fields.text('acKind'))}")
    if not _is_version(fields.text("acVersion")):
        fields.fail("acVersion", f"a version, got {shown(fields.text('acVersion'))}")
    labels = _pairs(fields, "labels", _is_identifier, limits)
    known = dict(labels)
    if "name" in known:
        fields.fail("labels", 'no label "name"')
    system = known.get("os", "")
    architecture, variant = _architecture(fields, known.get("arch", "") if system else "")
    return AciManifest(
        name=_identifier(fields, "name"),
        version=known.get("version", ""),
        os=system,
        architecture=architecture,
        variant=variant,
        labels=labels,
        annotations=_pairs(fields, "annotations", _is_identifier, limits),
        app=_app(fields.child("app"), limits) if fields.has("app") else None,
        dependencies=tuple(
            _identifier(child, "imageName") for child in _list(fields, "dependencies", limits)
        ),
        whitelist=_whitelist(fields),
    )


def _architecture(fields: Fields, name: str) -> tuple[str, str]:
    if not name:
        return "", ""
    found = _ARCHITECTURES.get(name)
    if found is None:
        fields.fail("labels", f"an arch of {', '.join(_ARCHITECTURES)}, got {shown(name)}")
    return found


def _app(fields: Fields, limits: Limits) -> App:
    workdir = fields.text("workingDirectory", "")
    if workdir and not workdir.startswith("/"):
        fields.fail("workingDirectory", f"an absolute path, got {shown(workdir)}")
    for key in ("user", "group"):
        if not fields.text(key):
            fields.fail(key, "a name or number")
    points = tuple(point.text("path") for point in _list(fields, "mountPoints", limits))
    for path in points:
        if not path.startswith("/"):
            fields.fail("mountPoints", f"absolute paths, got {shown(path)}")
    return App(
        exec=fields.texts("exec"),
        user=fields.text("user"),
        group=fields.text("group"),
        workdir=workdir,
        environment=_pairs(fields, "environment", _is_variable, limits),
        mount_points=points,
        ignored=tuple(key for key in _IGNORED if fields.has(key)),
    )


def _list(fields: Fields, key: str, limits: Limits) -> tuple[Fields, ...]:
    return fields.children(key, "descriptors", limits.descriptors) if fields.has(key) else ()


def _pairs(
    fields: Fields, key: str, allowed: Callable[[str], bool], limits: Limits
) -> tuple[tuple[str, str], ...]:
    """A list of objects with name and value, each name once.  allowed: what a name must be."""
    found: dict[str, str] = {}
    for child in _list(fields, key, limits):
        name = child.text("name")
        if not allowed(name):
            child.fail("name", f"a name, got {shown(name)}")
        if name in found:
            raise ImageInvalid(f"{fields.what}: {key}: {shown(name)} occurs twice")
        found[name] = child.text("value")
    return tuple(found.items())


def _whitelist(fields: Fields) -> frozenset[bytes] | None:
    """Normal names without leading slash; an empty list means the same as none (aci.md)."""
    paths = fields.texts("pathWhitelist")
    if len(paths) > _PATHS:
        fields.fail("pathWhitelist", f"at most {_PATHS} paths")
    found = set()
    for path in paths:
        parts = [part for part in path.split("/") if part and part != "."]
        if not path.startswith("/") or ".." in parts:
            fields.fail("pathWhitelist", f"absolute paths without .., got {shown(path)}")
        found.add("/".join(parts).encode())
    return frozenset(found) or None


def _identifier(fields: Fields, key: str) -> str:
    name = fields.text(key)
    if not _is_identifier(name):
        fields.fail(key, f"an identifier (a-z, 0-9, and -._~/ between them), got {shown(name)}")
    return name


def _is_identifier(name: str) -> bool:
    """types.md: AC Identifier, ``[a-z0-9]+([-._~/][a-z0-9]+)*``."""
    before = "-"
    for character in name:
        if character not in _LOWER and (character not in _SEPARATORS or before in _SEPARATORS):
            return False
        before = character
    return before not in _SEPARATORS


def _is_variable(name: str) -> bool:
    return _WORD.issuperset(name) and name[:1] not in _NOT_FIRST


def _is_version(text: str) -> bool:
    """Semantic versioning as far as it matters here: three numbers, and what may follow them."""
    numbers = text.partition("+")[0].partition("-")[0].split(".")
    return len(numbers) == 3 and all(number.isascii() and number.isdigit() for number in numbers)


def platform_for(manifest: AciManifest, wanted: Platform) -> Platform:
    """What the image was built for; where it does not say, what is wanted (aci.md, "os, arch")."""
    if not manifest.os:
        return wanted
    if not manifest.architecture:
        return Platform(manifest.os, wanted.architecture, wanted.variant)
    return Platform(manifest.os, manifest.architecture, manifest.variant)


def image_config(manifest: AciManifest, platform: Platform, image_id: str) -> bytes:
    """The manifest as an image-spec configuration, which is what a store keeps.

    image_id: digest of the tar, which is the only layer.
    """
    labels = {**dict(manifest.annotations), **dict(manifest.labels), TITLE: manifest.name}
    config: dict[str, object] = {"Labels": labels}
    if manifest.app is not None:
        app = manifest.app
        config["Entrypoint"] = list(app.exec)
        config["User"] = f"{app.user}:{app.group}"
        config["WorkingDir"] = app.workdir
        config["Env"] = [f"{name}={value}" for name, value in app.environment]
        config["Volumes"] = {path: {} for path in app.mount_points}
    document = {
        "os": platform.os,
        "architecture": platform.architecture,
        "variant": platform.variant,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [image_id]},
    }
    return json.dumps(document, indent=1).encode() + b"\n"
