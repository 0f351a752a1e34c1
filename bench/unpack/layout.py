# SPDX-License-Identifier: Apache-2.0
"""Reading an OCI image layout: just enough for the benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def split(reference: str) -> tuple[Path, str]:
    """Directory and tag of ``oci:DIR[:TAG]``."""
    directory, _, tag = reference.removeprefix("oci:").partition(":")
    return Path(directory), tag or "latest"


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _read(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_blob(layout, descriptor["digest"]).read_text())
    return data


def manifest(reference: str) -> dict[str, Any]:
    """The image's manifest; the first one of an index without that tag."""
    layout, tag = split(reference)
    index = json.loads((layout / "index.json").read_text())["manifests"]
    named = [m for m in index if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag]
    found = _read(layout, (named or index)[0])
    return _read(layout, found["manifests"][0]) if "manifests" in found else found


def layers(reference: str) -> list[Path]:
    """The layers' files, lowest first."""
    layout, _ = split(reference)
    return [_blob(layout, layer["digest"]) for layer in manifest(reference)["layers"]]


def warm(reference: str) -> int:
    """Read all layers, so that they lie in the page cache for everybody; returns their bytes."""
    total = 0
    for path in layers(reference):
        with path.open("rb") as blob:
            while data := blob.read(CHUNK):
                total += len(data)
    return total
