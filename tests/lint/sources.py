# SPDX-License-Identifier: Apache-2.0
"""The files of the checkout that the lint tests look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

DIRECTORIES = ("hpcpod", "tests", "bench", "docs", ".ci")
SKIPPED = {"__pycache__", "build"}
SOURCES = {".py", ".c", ".h", ".sh"}
TEXTS = SOURCES | {".md", ".toml", ".build", ".txt", ".json", ".cfg", ".in", ".map"}


def _files() -> Iterator[Path]:
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and not path.is_symlink())
    for top in DIRECTORIES:
        for directory, below, names in os.walk(ROOT / top):
            below[:] = sorted(name for name in below if name not in SKIPPED)
            yield from (Path(directory) / name for name in sorted(names))


FILES = tuple(_files())


def is_program(path: Path) -> bool:
    """Whether the file starts with ``#!``."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def sources() -> list[Path]:
    """What is written in a programming language, build files included."""
    named = {"Makefile", "meson.build", "meson.options"}
    return [
        path
        for path in FILES
        if path.suffix in SOURCES or path.name in named or (not path.suffix and is_program(path))
    ]


def texts() -> list[Path]:
    """Everything that people read and write here."""
    return sorted({*sources(), *(path for path in FILES if path.suffix in TEXTS)})


def shown(path: Path) -> str:
    """The path as messages name it."""
    return str(path.relative_to(ROOT))
