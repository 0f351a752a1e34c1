# SPDX-License-Identifier: Apache-2.0
"""The Merkle tree: byte for byte that of veritysetup(8), its measurement that of fsverity(1)."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcpod.images.stores import leaves, merkle
from hpcpod.images.stores.leaves import Unreadable, leaves_of

SIZES = (1, 4095, 4096, 4097, 8192, 128 * 4096, 128 * 4096 + 1, 129 * 4096, 16385 * 4096, 40 << 20)


def hashed(path: Path) -> tuple[str, bytes]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return merkle.tree_of(leaves_of(fd, path.stat().st_size))
    finally:
        os.close(fd)


def a_file(path: Path, size: int) -> Path:
    seed = hashlib.shake_256(b"%d" % size).digest(min(size, 1 << 20))
    path.write_bytes((seed * (size // len(seed) + 1))[:size])
    return path


@pytest.mark.needs("veritysetup")
@pytest.mark.parametrize("size", [size for size in SIZES if size % 4096 == 0])
def test_the_tree_of_veritysetup(size: int, tmp_path: Path) -> None:
    data, tree = a_file(tmp_path / "data", size), tmp_path / "tree"
    tree.touch()
    words = ["veritysetup", "format", "--no-superblock", "--salt=-", "--hash=sha256", "--format=1"]
    words += ["--data-block-size=4096", "--hash-block-size=4096", f"--data-blocks={size // 4096}"]
    done = subprocess.run([*words, data, tree], check=True, capture_output=True, text=True)
    root, blocks = hashed(data)
    found = re.search(r"Root hash:\s*([0-9a-f]{64})", done.stdout)
    assert found and found.group(1) == root
    assert tree.read_bytes() == blocks and len(blocks) == merkle.tree_size(size)


@pytest.mark.needs("fsverity")
@pytest.mark.parametrize("size", SIZES)
def test_the_digest_of_fsverity(size: int, tmp_path: Path) -> None:
    data = a_file(tmp_path / "data", size)
    done = subprocess.run(
        ["fsverity", "digest", "--compact", data], check=True, capture_output=True, text=True
    )
    root, _ = hashed(data)
    assert merkle.measurement(root, size) == done.stdout.strip()


def test_however_many_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody may be forked."""
    data = a_file(tmp_path / "data", 3 * (1 << 20) + 4097)
    whole = hashed(data)
    monkeypatch.setattr(leaves, "_SHARE", 4096 * 3)
    assert hashed(data) == whole
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    assert hashed(data) == whole

    def refuse() -> int:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(os, "fork", refuse)
    assert hashed(data) == whole


@pytest.mark.parametrize("missing", [1, 4096, 1 << 20, 33 << 20])
def test_a_file_that_ends_before(missing: int, tmp_path: Path) -> None:
    """Whichever process meets the end; nobody is left."""
    size = 40 << 20
    data = a_file(tmp_path / "data", size - missing)
    fd = os.open(data, os.O_RDONLY)
    try:
        with pytest.raises(Unreadable) as error:
            leaves_of(fd, size)
    finally:
        os.close(fd)
    assert error.value.errno == 0 and error.value.position == size - missing
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@settings(max_examples=60)
@given(st.integers(1, 300 * 4096), st.data())
def test_every_bit_counts(size: int, data: st.DataObject) -> None:
    count = merkle.blocks_of(size)
    digests = hashlib.shake_256(b"leaves").digest(count * 32)
    root, blocks = merkle.tree_of(digests)
    assert len(blocks) == merkle.tree_size(size)
    assert count == 1 or merkle.leaves_in(blocks, size) == digests
    bit = data.draw(st.integers(0, len(digests) * 8 - 1))
    changed = bytearray(digests)
    changed[bit // 8] ^= 1 << bit % 8
    assert merkle.tree_of(bytes(changed))[0] != root
    assert merkle.measurement(root, size) != merkle.measurement(root, size + 1)


def test_nothing_of_the_table_restarts_or_panics() -> None:
    length, words = merkle.table("ab" * 32, 3 * 4096, "7:0", "7:1")
    assert length == 24 and words == f"1 7:0 7:1 4096 4096 3 0 sha256 {'ab' * 32} -"
