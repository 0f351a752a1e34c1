# SPDX-License-Identifier: Apache-2.0
"""The reader of sealed records: what it takes, what it refuses, and that nothing makes it read astray."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.conftest import HERE, NATIVE, Compile
from tests.native.records import FULL, FUSE, words

Call = Callable[..., subprocess.CompletedProcess[bytes]]

pytestmark = pytest.mark.needs("sanitizers")

HEAD = ("hpcpod-record", "1")
ROOT = ("rootfs", "/", "1", "2")
FILE = ("fuse", "/image", "1", "2", "sha256-0.squashfs", "/bin/server")


def test_a_record_with_every_operation_is_read(call: Call) -> None:
    done = call("parse", record=FULL)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rb"\d+ operations, rootfs /, current [01]\n", done.stdout)


def test_a_record_with_a_packed_image_is_read(call: Call) -> None:
    done = call("parse", record=FUSE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rb"\d+ operations, rootfs \(none\), current [01]\n", done.stdout)


@pytest.mark.parametrize("change", ["none", "absent", "device", "inode"])
def test_another_packed_file_makes_a_record_void(call: Call, tmp_path: Path, change: str) -> None:
    (tmp_path / "image").touch()
    status = (tmp_path / "image").stat()
    device, inode = status.st_dev + (change == "device"), status.st_ino + (change == "inode")
    if change == "absent":
        (tmp_path / "image").unlink()
    record = words(*HEAD, "fuse", str(tmp_path / "image"), str(device), str(inode), "n", "/s", "end")
    current = b"1" if change == "none" else b"0"
    assert call("parse", record=record).stdout.endswith(b"current " + current + b"\n")


def current(call: Call, *operations: str) -> bool:
    """Whether a record with these operations is good for a start at 0."""
    done = call("parse", record=words(*HEAD, *stamped("rootfs", "/")[:4], *operations, "end"))
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.endswith(b"current 1\n")


def stamped(operation: str, path: str) -> tuple[str, ...]:
    s = os.stat(path)
    return operation, path, *map(str, (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))


def test_a_file_that_was_not_there_must_not_come(call: Call, tmp_path: Path) -> None:
    absent = ("guard", str(tmp_path / "no/policy"), "0", "0", "0", "0", "0")
    assert current(call, *absent)
    (tmp_path / "no").touch()
    assert current(call, *absent)
    (tmp_path / "no").unlink()
    (tmp_path / "no").mkdir()
    (tmp_path / "no/policy").touch()
    assert not current(call, *absent)


def test_a_file_that_went_makes_a_record_void(call: Call, tmp_path: Path) -> None:
    (tmp_path / "policy").touch()
    guard = stamped("guard", str(tmp_path / "policy"))
    assert current(call, *guard)
    (tmp_path / "policy").unlink()
    assert not current(call, *guard)


def test_a_root_of_zeros_is_not_there(call: Call, tmp_path: Path) -> None:
    record = words(*HEAD, "rootfs", str(tmp_path / "gone"), "0", "0", "end")
    assert call("parse", record=record).stdout.endswith(b"current 0\n")


@pytest.mark.parametrize(("operation", "later"), [("until", "4000000000000000000"), ("fresh", "1")])
def test_a_record_that_came_too_early_is_void(call: Call, operation: str, later: str) -> None:
    """The driver starts at 0, now is later than 1."""
    assert current(call, operation, later)
    assert not current(call, operation, "0")
    assert not current(call, operation, "-1")
    assert not current(call, operation, "")


def test_the_full_record_has_every_operation_of_the_grammar() -> None:
    names = set(re.findall(r'\[OP_[A-Z_]+\] = \{"([a-z-]+)"', (NATIVE / "record.c").read_text()))
    assert names and names <= {os.fsdecode(word) for word in (FULL + FUSE).split(b"\0")}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"", "not of version 1"),
        (words("hpcpod-record"), "not of version 1"),
        (words("hpcpod-record", "2", *ROOT, "end"), "not of version 1"),
        (words("hpcpod-recor", "1", *ROOT, "end"), "not of version 1"),
        (words(*HEAD), "without"),
        (words(*HEAD, *ROOT), "without"),
        (words(*HEAD, *ROOT, "end")[:-1], "without"),
        (words(*HEAD, "end"), "no rootfs"),
        (words(*HEAD, *ROOT, *FILE, "end"), "more than one of rootfs and fuse"),
        (words(*HEAD, *ROOT, *ROOT, "end"), "more than one of rootfs and fuse"),
        (words(*HEAD, *FILE, *FILE, "end"), "more than one of rootfs and fuse"),
        (words(*HEAD, *FILE[:-1]), "fuse lacks word 5"),
        (words(*HEAD, *ROOT, "mount", "end"), "unknown operation mount"),
        (words(*HEAD, *ROOT, "BIND", "/", "/", "", "end"), "unknown operation BIND"),
        (words(*HEAD, *ROOT, "", "end"), "unknown operation"),
        (words(*HEAD, *ROOT, "bind", "/"), "bind lacks word 2"),
        (words(*HEAD, *ROOT, "end", "end"), 'words after "end"'),
        (words(*HEAD, *ROOT, "end") + b"x", 'words after "end"'),
    ],
)
def test_half_a_record_and_a_strange_one_are_refused(call: Call, record: bytes, expected: str) -> None:
    done = call("parse", record=record)
    assert done.returncode == 125
    assert expected in done.stderr.decode() and done.stderr.decode().endswith("[record]\n")


def test_control_characters_of_a_record_do_not_reach_the_terminal(call: Call) -> None:
    done = call("parse", record=words(*HEAD, *ROOT, "\x1b[2J\nx\x7f", "end"))
    assert done.stderr == rb"hpcpod: sealed record: unknown operation \x1b[2J\x0ax\x7f [record]" + b"\n"


@pytest.mark.parametrize("record", [FULL, FUSE], ids=["tree", "packed"])
def test_no_truncation_is_accepted(call: Call, record: bytes) -> None:
    done = call("truncations", record=record)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("seed", ["1", "20250101"])
def test_mutations_are_read_within_their_bounds(call: Call, seed: str) -> None:
    done = call("mutations", seed, "10000", record=FULL)
    assert done.returncode == 0
    assert re.fullmatch(rb"\d+ of 10000 mutations accepted\n", done.stdout)


@pytest.mark.needs("fuzzer")
def test_the_fuzzer_finds_nothing(compiled: Compile, tmp_path: Path) -> None:
    program = compiled(["clang", "-fsanitize=fuzzer,address,undefined"], HERE / "fuzz_record.c")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "full").write_bytes(FULL)
    (corpus / "packed").write_bytes(FUSE)
    done = subprocess.run(
        [program, "-runs=20000", "-seed=1", "-max_len=4096", "-verbosity=0", corpus],
        capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
