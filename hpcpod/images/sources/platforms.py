# SPDX-License-Identifier: Apache-2.0
"""Which platforms an image may be built for to run here (image-spec, image-index.md; Go's GOOS, GOARCH)."""

from __future__ import annotations

from hpcpod.errors import ImagePlatformMismatch, ImageReferenceError
from hpcpod.log import shown
from hpcpod.model import Platform

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
    "i686": ("386", ""),
}
_BASELINE = {"amd64": "v1", "arm64": "v8"}
"""The variant that no variant means."""
_PART = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_PARTS = 3


def platform_of(machine: str) -> Platform:
    """The platform of a Linux machine, from uname(2)'s name for it."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """``OS/ARCH[/VARIANT]`` as written on a command line.  Raises ImageReferenceError."""
    parts = text.split("/")
    if not 1 < len(parts) <= _MAX_PARTS or not all(part and _PART.issuperset(part) for part in parts):
        raise ImageReferenceError(
            f"platform {shown(text)}: expected OS/ARCHITECTURE[/VARIANT]", hint="for example linux/amd64"
        )
    return Platform(*parts)


def fits(offered: Platform, wanted: Platform) -> bool:
    """Whether an image for `offered` is what was asked for.

    A variant that is not named means the architecture's baseline, on both sides; 32-bit ARM takes older
    variants too.
    """
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    baseline = _BASELINE.get(offered.architecture, "")
    have, want = offered.variant or baseline, wanted.variant or baseline
    if offered.architecture == "arm":
        return have <= want
    return have == want or not offered.variant


def check_fits(built_for: Platform, wanted: Platform, image: str) -> None:
    """Raise ImagePlatformMismatch unless an image for `built_for` is what was asked for.  image: its name."""
    if not fits(built_for, wanted):
        raise ImagePlatformMismatch(
            f"image {image}: built for {shown(str(built_for))}, not for {wanted}",
            hint="--platform OS/ARCH chooses another; it runs only where the machine or an emulator can",
        )
