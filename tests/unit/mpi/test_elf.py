# SPDX-License-Identifier: Apache-2.0
"""The ELF reader: what it reads, and that nothing in a hostile file leads it astray."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcpod.images.contents.elf import Elf, ElfMalformed, read_elf
from tests.unit.mpi.elves import AARCH64, elf

SAMPLE = elf(
    needed=["libmpi.so.40", "libc.so.6"],
    soname="libx.so.1",
    interpreter="/lib64/ld-linux-x86-64.so.2",
    runpath="$ORIGIN:/opt/lib",
)


def read(path: Path, data: bytes) -> Elf | None:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_elf(fd)
    finally:
        os.close(fd)


def test_a_program_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "x", SAMPLE) == Elf(
        "amd64",
        "/lib64/ld-linux-x86-64.so.2",
        "libx.so.1",
        ("libmpi.so.40", "libc.so.6"),
        ("$ORIGIN", "/opt/lib"),
    )


def test_a_static_program_needs_nothing(tmp_path: Path) -> None:
    found = read(tmp_path / "x", elf(static=True, machine=AARCH64))
    assert found == Elf("arm64", "", "", (), ())


def test_this_python_is_read() -> None:
    with open(os.path.realpath(sys.executable), "rb") as file:
        found = read_elf(file.fileno())
    assert found is not None
    assert found.interpreter.startswith("/")
    assert any(name.startswith("libc.") for name in found.needed)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fEL", b"MZ"])
def test_other_files_are_no_elf(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "x", data) is None


def patched(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(SAMPLE)
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(SAMPLE[:40], id="cut in the header"),
        pytest.param(SAMPLE[:100], id="cut in the segments"),
        pytest.param(patched(4, "<B", 1), id="32 bits"),
        pytest.param(patched(5, "<B", 2), id="big-endian"),
        pytest.param(patched(32, "<Q", 2**63 + 5), id="segments at no offset"),
        pytest.param(patched(56, "<H", 65535), id="too many segments"),
        pytest.param(patched(54, "<H", 1), id="short segments"),
        pytest.param(patched(64 + 2 * 56 + 8, "<Q", 2**62), id="dynamic section at no offset"),
        pytest.param(patched(64 + 8, "<Q", 2**64 - 1), id="strings at no offset"),
        pytest.param(patched(64 + 56 + 8, "<Q", 2**63), id="interpreter at no offset"),
    ],
)
def test_what_breaks_the_rules_is_malformed(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ElfMalformed):
        read(tmp_path / "x", data)


def test_too_many_libraries_are_malformed(tmp_path: Path) -> None:
    with pytest.raises(ElfMalformed, match="needed libraries"):
        read(tmp_path / "x", elf(needed=["a"] * 300))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 600)
)
def test_any_damage_is_read_or_malformed(tmp_path: Path, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SAMPLE)
    for offset, value in changes:
        data[offset] = value
    try:
        found = read(tmp_path / "x", bytes(data[:length] if length < len(data) else data))
    except ElfMalformed:
        return
    assert found is None or all(len(name) <= 4096 for name in found.needed)
