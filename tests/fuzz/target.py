# SPDX-License-Identifier: Apache-2.0
"""What a fuzz target is, and what all of them check."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hpcpod.errors import HpcpodError
from hpcpod.images.limits import Limits

SECONDS = 10
"""No input may take longer, on a busy machine."""
MEMORY = 600 << 20
"""Bytes that the whole process may take."""
BASE = "HPCPOD_FUZZ_SCRATCH"
"""The variable that names the directory in memory to make scratch directories in."""
LONGEST = 4096
"""Characters of a message."""

SMALL = Limits(
    bytes_out=1 << 20,
    entries=64,
    directories=64,
    names_bytes=8192,
    file_bytes=1 << 18,
    path_bytes=1024,
    path_depth=16,
    header_bytes=4096,
    pax_records=16,
    json_bytes=1 << 16,
    json_depth=12,
    layers=8,
    descriptors=32,
    documents=8,
    index_depth=3,
    zstd_window=1 << 20,
    empty_frames=16,
    archive_members=32,
)
"""Limits that inputs of some kilobytes reach."""


class Broken(AssertionError):
    """A promise of hpcpod's that the input broke."""


@dataclass(frozen=True)
class Target:
    """One thing to fuzz.

    run: raises Broken, or anything, for a finding.  seeds: inputs to start from, by name.  known: inputs that
    once were findings.  longest: bytes of an input.  words: tokens for libFuzzer's dictionary.
    runs: inputs of a bounded run, some seconds.  tools: needs (tests/needs.py) beside atheris.
    """

    run: Callable[[bytes], None]
    seeds: Mapping[str, bytes]
    known: Mapping[str, bytes] = field(default_factory=dict)
    longest: int = 4096
    words: tuple[bytes, ...] = ()
    runs: int = 2000
    tools: tuple[str, ...] = ()


def targets() -> dict[str, Target]:
    """All targets, by name of their module."""
    package = importlib.import_module("tests.fuzz.targets")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: load(name) for name in names}


def load(name: str) -> Target:
    """One target.  Raises ImportError."""
    found: Target = importlib.import_module(f"tests.fuzz.targets.{name}").TARGET
    return found


def refused(error: HpcpodError) -> None:
    """Check a refusal: a printable line, perhaps one for the hint, and never a fault of this program."""
    lines = error.lines().split("\n")
    if not error.message or len(lines) > 3 or not all(line.isprintable() for line in lines):
        raise Broken(f"message: {error.lines()!r}")
    if not error.slug.startswith(("image-", "trust-")):
        raise Broken(f"{error.slug}: {error.message}") from error
    if len(error.message) > LONGEST:
        raise Broken(f"message of {len(error.message)} characters")
