# SPDX-License-Identifier: Apache-2.0
"""What the command line says of wrong words, and how errors end it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def hpcpod(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcpod", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("words", [("plan", "--debug", "oci:/nope"), ("--debug", "plan", "oci:/nope")])
def test_debug_adds_a_traceback_and_changes_nothing_else(words: tuple[str, ...]) -> None:
    done = hpcpod(*words)
    assert done.returncode == 125
    assert done.stderr.startswith("Traceback ")
    assert "\nhpcpod: " in done.stderr
    assert "[image-not-found]" in done.stderr


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--", "oci:/a", "x"], "-- goes after the image"),
        (["oci:/a", "--json"], "--json after the image"),
        ([], "no image given"),
    ],
)
def test_wrong_order_is_named(command: str, words: list[str], expected: str) -> None:
    done = hpcpod(command, *words)
    assert done.returncode == 125
    assert expected in done.stderr


def test_help_says_that_the_program_is_optional() -> None:
    text = hpcpod("plan", "--help").stdout
    assert "IMAGE [--] [PROGRAM [ARGUMENTS]...]" in text
    assert "--json" in text
