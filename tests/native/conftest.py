# SPDX-License-Identifier: Apache-2.0
"""The native part compiled for tests: with sanitizers, and a driver that calls its functions one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "hpcpod" / "isolation" / "native"
HERE = Path(__file__).resolve().parent

Compile = Callable[[Sequence[str], Path], Path]


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the headers that the build makes."""
    directory = tmp_path_factory.mktemp("generated")
    words = [sys.executable, str(NATIVE / "options.py"), str(ROOT / "hpcpod" / "launcher" / "options.py")]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    (directory / "options.h").write_text(made)
    (directory / "version.h").write_text('#define HPCPOD_VERSION "0.0.0-test"\n')
    return directory


@pytest.fixture(scope="session")
def compiled(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """``compiled(["gcc", …], source)``: the source with all of the native part but main.c, as a program."""

    def build(compiler: Sequence[str], source: Path) -> Path:
        program = tmp_path_factory.mktemp("program") / source.stem
        parts = [path for path in sorted(NATIVE.glob("*.c")) if path.name != "main.c"]
        includes = [f"-I{generated}", f"-I{NATIVE}"]
        flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
        words: list[str | Path] = [*compiler, *flags, *includes, "-o", program, source, *parts]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return program

    return build


@pytest.fixture(scope="session")
def driver(compiled: Compile) -> Path:
    """driver.c under the address and the undefined-behaviour sanitizer."""
    return compiled(
        ["gcc", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
        HERE / "driver.c",
    )


@pytest.fixture
def call(driver: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """``call(word, …, env={…}, record=…)``: run the driver; record: bytes put into a file, named last."""

    def run(
        *words: str | bytes, env: dict[str, str] | None = None, record: bytes | None = None, **more: Any
    ) -> subprocess.CompletedProcess[bytes]:
        argv: list[str | bytes | os.PathLike[str]] = [driver, *words]
        if record is not None:
            (tmp_path / "record").write_bytes(record)
            argv.insert(2, tmp_path / "record")
        done = subprocess.run(
            argv,
            env=env or {},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
            **more,
        )
        # a sanitizer's report ends the program with status 1 and starts a line with "=="; or ends by a signal
        assert done.returncode >= 0 and b"Sanitizer" not in done.stderr, done.stderr.decode(errors="replace")
        assert b"runtime error" not in done.stderr, done.stderr.decode(errors="replace")
        return done

    return run
