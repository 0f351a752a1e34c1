# SPDX-License-Identifier: Apache-2.0
"""The programs that benchmarks use: small static C ones, built here, and the installed hpcpod."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.account import BenchError, last_line


def build(source: Path, directory: Path) -> Path:
    """Compile one C file statically, with musl where there is one: it starts 0.3 ms sooner than glibc."""
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler: install musl-tools or gcc")
    program = directory / source.stem
    done = subprocess.run(
        [compiler, "-static", "-O2", "-Wall", "-Wextra", "-o", program, source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{source.name}: {compiler} fails: {last_line(done.stderr)}")
    program.chmod(0o755)
    return program


def installed_hpcpod(given: str | None) -> Path:
    """The command ``hpcpod`` of the environment that runs the benchmark, or the one named.

    It must be an installed one: an editable install and the source tree start in another way.
    """
    path = Path(given) if given else Path(sys.executable).parent / "hpcpod"
    if not os.access(path, os.X_OK):
        raise BenchError(f"{path}: not there; install hpcpod in this environment, or use --hpcpod")
    return path.absolute()


def demo_image() -> str:
    """Reference of the image that ``make demo`` runs, built now if it is not cached.  Raises BenchError."""
    from tests.testbed.image import ImageUnavailable, reference

    try:
        return reference(say=lambda line: print(f"==> {line}", file=sys.stderr, flush=True))
    except ImageUnavailable as error:
        raise BenchError(str(error)) from error
