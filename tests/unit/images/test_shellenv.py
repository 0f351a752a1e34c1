# SPDX-License-Identifier: Apache-2.0
"""Assignments that a shell would make are read, and agree with the shell; all else ends the reading."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.images.sources.shellenv import Assignments

KNOWN = {"PATH": "/bin", "LD_LIBRARY_PATH": ""}


def read(text: str) -> tuple[dict[str, str], int]:
    found = Assignments(KNOWN)
    line = found.read(text)
    return found.exported, line


def by_shell(text: str) -> dict[str, str]:
    """What a real shell exports, but what it has without the script."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"{text}\n/usr/bin/env -0"], env=KNOWN, capture_output=True, check=True
    )
    pairs = (pair.partition("=") for pair in done.stdout.decode().split("\0") if pair)
    return {name: value for name, _, value in pairs if name not in ("PWD", "OLDPWD", "SHLVL", "_")}


GOOD = [
    "export A=1",
    "export A=1 B='2 3' # why",
    'export A="a \\"b\\" \\$c \\x"',
    'A=1; export A\nexport B="$A/${A}"',
    'export A="${A:-"a b"}"',
    'export A="${A:-a \\"b\\"}"',
    'export A=""\nexport B="${A:-x}${A-y}"',
    "export PATH=/opt/bin:$PATH",
    'export LD_LIBRARY_PATH="/opt/lib:$LD_LIBRARY_PATH"',
    "export A=a\\ b'c'\"d\"",
    "export A='two\nlines'",
    "export A=a#b",
    "",
    "# nothing\n\n  \n",
]


@pytest.mark.parametrize("text", GOOD)
def test_as_a_shell_reads_it(text: str) -> None:
    found, line = read(text)
    assert line == 0
    assert {**KNOWN, **found} == by_shell(text)


BAD = [
    "export A=$(id)",
    "export A=`id`",
    'export A="$HOME"',
    'export A="${B:-x}"',
    "if true; then\nexport A=1\nfi",
    "export A=1 && export B=2",
    "export A=~/x",
    "export A=*",
    "export A",
    "umask 022",
    "export A='open",
    'export A="open',
    "export A=${A:-x}",
    'export A="${A:=x}"',
    "export -n A",
    "A=1 program",
    "export A=$1",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_for_a_shell_ends_the_reading(text: str) -> None:
    found, line = read(f"export FIRST=1\n{text}\nexport LAST=1\n")
    assert line == 2
    assert found == {"FIRST": "1"}


@given(st.text(st.sampled_from("A=\"'$ {}:-\\\nexport;#b"), max_size=40))
def test_any_text_is_read_or_not(text: str) -> None:
    _, line = read(text)
    assert 0 <= line <= text.count("\n") + 1
