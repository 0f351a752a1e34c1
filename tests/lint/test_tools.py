# SPDX-License-Identifier: Apache-2.0
"""Style, types and import rules: the tools that know them, as tests, so that pytest is the whole gate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lint.sources import ROOT


def run_tool(name: str, *words: str) -> None:
    """Run a tool of this environment on the checkout; its own words are the failure."""
    done = subprocess.run(
        [str(Path(sys.prefix) / "bin" / name), *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{name} {' '.join(words)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_style() -> None:
    run_tool("ruff", "check", "--no-cache", ".")


def test_format() -> None:
    run_tool("ruff", "format", "--no-cache", "--check", ".")


def test_types(tmp_path: Path) -> None:
    cache = ROOT / ".mypy_cache" if os.access(ROOT, os.W_OK) else tmp_path
    run_tool("mypy", "--cache-dir", str(cache), "hpcpod", "tests", "bench")


def test_import_rules() -> None:
    run_tool("lint-imports", "--no-cache")
