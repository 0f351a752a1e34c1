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


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["rn"], "Did you mean 'run'?"),
        (["doctr"], "Did you mean 'doctor'?"),
        (["help"], "Help: hpcpod --help, hpcpod COMMAND --help."),
        (["help", "run"], "Help: hpcpod --help"),
        (["pull", "x"], "Did you mean 'image pull'?"),
        (["rmi", "x"], "Did you mean 'image rm'?"),
        (["exec"], "Did you mean 'run'?"),
        (["image", "ls"], "Did you mean 'list'?"),
        (["image", "inspekt"], "Did you mean 'inspect'?"),
        (["image", "help"], "Help: hpcpod image --help"),
        (["trust", "remove"], "Did you mean 'rm'?"),
        (["zzzz"], "hpcpod --help lists the commands."),
        (["image", "qqqq"], "hpcpod image --help lists the commands."),
    ],
)
def test_what_was_perhaps_meant(words: list[str], more: str) -> None:
    done = hpcpod(*words)
    assert done.returncode == 2 and "No such command" in done.stderr and more in done.stderr


@pytest.mark.parametrize("name", ["abcd", "sha256:abcdef0", "sha512:1"])
def test_too_short_a_digest_is_named(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hpcpod", "image", "rm", name],
        env={"HPCPOD_STORE": str(tmp_path / "store"), "HPCPOD_CONFIG": ""},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 125 and "digits of a digest, 8 or more name an image [usage]" in done.stderr
