# SPDX-License-Identifier: Apache-2.0
"""How errors are shown: a line each, nothing that drives a terminal, nothing cut."""

from __future__ import annotations

import errno

from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import Fault, HpcpodError, UsageError, as_hpcpod_error


def test_message_slug_and_hint() -> None:
    assert UsageError("option x: bad", hint="try y").lines() == "hpcpod: option x: bad [usage]\nhint: try y\n"
    assert UsageError("option x: bad").lines() == "hpcpod: option x: bad [usage]\n"


def test_long_paths_are_not_cut_and_escapes_not_doubled() -> None:
    path = "/p" * 1000
    assert path in HpcpodError(f"{path}: gone").lines()
    assert HpcpodError("name \\x1b").lines() == "hpcpod: name \\x1b [internal]\n"


@given(st.text(), st.text(min_size=1))
def test_a_line_each(message: str, hint: str) -> None:
    lines = HpcpodError(message, hint=hint).lines()
    assert lines.count("\n") == 2 and lines.replace("\n", "").isprintable()


def test_what_nothing_handled() -> None:
    absent = FileNotFoundError(errno.ENOENT, "No such file or directory", "/a\n")
    assert as_hpcpod_error(absent).lines() == "hpcpod: /a\\n: no such file or directory [os-error]\n"
    moved = OSError(errno.EXDEV, "Cross-device link", "/a", None, "/b")
    assert as_hpcpod_error(moved).message == "/a to /b: cross-device link"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert as_hpcpod_error(full, "standard output").message == "standard output: no space left on device"
    assert as_hpcpod_error(KeyError("x")).lines() == (
        "hpcpod: internal error: KeyError: 'x' [internal]\nhint: run again with --debug and report it\n"
    )
    assert as_hpcpod_error(KeyError("x")).fault is Fault.BUG
    known = UsageError("bad")
    assert as_hpcpod_error(known) is known
