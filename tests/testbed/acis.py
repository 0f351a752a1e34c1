# SPDX-License-Identifier: Apache-2.0
"""App Container Images written byte by byte, and strategies for random valid ones."""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.testbed.layouts import END, PACK, directory, file, hardlink, symlink

MANIFEST: dict[str, Any] = {
    "acKind": "ImageManifest",
    "acVersion": "0.8.11",
    "name": "example.com/solver",
    "labels": [
        {"name": "version", "value": "1.0.0"},
        {"name": "arch", "value": "amd64"},
        {"name": "os", "value": "linux"},
    ],
    "app": {
        "exec": ["/bin/solver", "--quiet"],
        "user": "100",
        "group": "300",
        "workingDirectory": "/opt/work",
        "environment": [{"name": "SOLVER_DEBUG", "value": "true"}],
        "mountPoints": [{"name": "work", "path": "/var/lib/work", "readOnly": False}],
    },
    "annotations": [{"name": "authors", "value": "Carly Container <carly@example.com>"}],
}
"""After the example of the specification."""

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": PACK["gzip"],
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def aci(
    tree: bytes = directory(b"rootfs"), manifest: Any = None, *, last: bool = True, end: bytes = END
) -> bytes:
    """The tar of an image: entries of the tree, and the manifest behind them, as actool does, or before."""
    document = MANIFEST if manifest is None else manifest
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    entry = file(b"manifest", raw)
    return (tree + entry if last else entry + tree) + end


def image_id(tar: bytes) -> str:
    return f"sha512:{hashlib.sha512(tar).hexdigest()}"


# --------------------------------------------------------------------------- random valid images

identifiers = st.from_regex(r"[a-z0-9]+([-._~/][a-z0-9]+){0,3}", fullmatch=True)
_variables = st.from_regex(r"[A-Za-z_][A-Za-z_0-9.-]{0,9}", fullmatch=True)
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
_paths = st.lists(st.from_regex(r"[a-z][a-z.]{0,4}", fullmatch=True), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


def _pairs(names: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    return st.dictionaries(names.filter(lambda name: name not in ("name", "os", "arch")), _texts).map(
        lambda found: [{"name": name, "value": value} for name, value in found.items()]
    )


_apps = st.fixed_dictionaries(
    {"exec": st.lists(_texts, max_size=3), "user": st.just("0"), "group": st.just("wheel")},
    optional={
        "workingDirectory": _paths,
        "environment": _pairs(_variables),
        "mountPoints": st.lists(_paths.map(lambda path: {"name": "x", "path": path}), max_size=2),
        "isolators": st.just([{"name": "resource/memory", "value": {"limit": "1G"}}]),
    },
)
manifests = st.fixed_dictionaries(
    {"acKind": st.just("ImageManifest"), "acVersion": st.just("0.8.11"), "name": identifiers},
    optional={
        "labels": _pairs(identifiers),
        "app": _apps,
        "annotations": _pairs(identifiers),
        "pathWhitelist": st.lists(_paths, max_size=3),
    },
)

_names = st.from_regex(rb"[a-zA-Z][a-zA-Z0-9 ]{0,8}", fullmatch=True)
_entries = st.one_of(
    st.binary(max_size=1200).map(lambda data: lambda name: file(name, data)),
    st.just(lambda name: directory(name, 0o750)),
    _names.map(lambda target: lambda name: symlink(name, target)),
)


@st.composite
def trees(draw: st.DrawFn) -> tuple[bytes, dict[bytes, bytes]]:
    """Entries of a tree, and what is where: names to the blocks that made them."""
    found = draw(st.dictionaries(_names, _entries, max_size=6))
    made = {name: make(b"rootfs/" + name) for name, make in found.items()}
    tar = directory(b"rootfs/") + b"".join(made.values())
    files = [name for name, block in made.items() if block[156:157] == b"0"]
    linked = draw(st.booleans())
    if files and linked:
        tar += hardlink(b"rootfs/-hard", b"rootfs/" + files[0])
        made[b"-hard"] = made[files[0]]
    return tar, made
