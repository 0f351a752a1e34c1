# SPDX-License-Identifier: Apache-2.0
"""Pulling an image with the library, and what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpcpod.errors import HpcpodError
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.sources.registry.patience import Patience
from hpcpod.images.sources.registry.source import RegistrySource
from hpcpod.log import Silent
from hpcpod.model import Platform

AMD64 = Platform("linux", "amd64")
HASTY = Patience(
    connect=2.0,
    silence=1.0,
    header=1.5,
    document=2.0,
    tries=3,
    pause=0.05,
    longest_pause=0.2,
    longest_wait=3.0,
    slowest=1000,
    slow_seconds=1.0,
    progress=1 << 20,
)
"""A test waits for no minute."""


class Told(Silent):
    """Keeps what a user would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bytes = 0

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def advance(self, count: int) -> None:
        """Count."""
        self.bytes += count


@dataclass
class Pulled:
    """How it ended.  tree: contents of its files, links' targets; error: or why there is none."""

    digest: str = ""
    tree: dict[str, bytes] = field(default_factory=dict)
    error: HpcpodError | None = None
    seconds: float = 0.0
    told: Told = field(default_factory=Told)


class Puller:
    """Pulls into directories below one; blobs stay in ``blobs``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.blobs = directory / "blobs"
        self.environment = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PATH": os.environ["PATH"],
        }
        self.count = 0

    def source(
        self, reference: str, told: Told, patience: Patience = HASTY, **more: object
    ) -> RegistrySource:
        """The image, opened."""
        insecure = more.get("insecure", frozenset())
        assert isinstance(insecure, frozenset)
        access = Access(self.environment, insecure, str(more.get("blobs", self.blobs)), told)
        return RegistrySource(parse_reference(reference), DEFAULT_LIMITS, access, patience)

    def pull(
        self,
        reference: str,
        patience: Patience = HASTY,
        before_unpacking: Callable[[], None] = lambda: None,
        **more: object,
    ) -> Pulled:
        """Find, describe and unpack."""
        self.count += 1
        out = self.directory / f"out-{self.count}"
        out.mkdir()
        result, start = Pulled(), time.monotonic()
        try:
            with self.source(reference, result.told, patience, **more) as source:
                result.digest = source.find(AMD64)
                source.describe(AMD64)
                before_unpacking()
                source.unpack(str(out), result.told)
            result.tree = tree_of(out)
        except HpcpodError as error:
            result.error = error
        result.seconds = time.monotonic() - start
        return result

    def kept(self) -> dict[str, int]:
        """The files of blobs that are left, with their sizes."""
        found = sorted(self.blobs.iterdir()) if self.blobs.exists() else []
        return {path.name.partition(".")[0]: path.stat().st_size for path in found}


def tree_of(out: Path) -> dict[str, bytes]:
    """Files below a directory, with their contents; links with their targets."""
    return {
        str(path.relative_to(out)): os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
