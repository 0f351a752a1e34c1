# SPDX-License-Identifier: Apache-2.0
"""Layouts in tar files: oci-archive."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testbed.layouts import file, image, write_archive, write_layout
from tests.testbed.places import Place

GOOD = image(file(b"a", b"1"), file(b"b", b"2"))


def archive(place: Place, bend: Callable[[bytes], bytes] = bytes) -> str:
    path = place.account.home / "image.tar"
    write_archive(path, write_layout(place.account.home / "layout", GOOD))
    path.write_bytes(bend(path.read_bytes()))
    return f"oci-archive:{path}"


def test_archive(place: Place) -> None:
    assert set(place.tree(archive(place))) == {"a", "b"}


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "compressed": gzip.compress,
    "cut": lambda data: data[: len(data) // 2],
    "cut at a block": lambda data: data[:1536],
    "empty": lambda data: b"",
    "text": lambda data: b"hello\n" * 1000,
    "a member twice": lambda data: file(b"index.json", b"{}") + data,
    "a member outside": lambda data: file(b"../x", b"{}") + data,
    "rubbish behind": lambda data: data + b"x" * 512,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_bad_archives(plain_place: Place, case: str) -> None:
    outcome = plain_place.refused(archive(plain_place, ARCHIVES[case]))
    assert outcome.seconds < 5


OTHERS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("how", OTHERS)
def test_archives_of_other_files(plain_place: Place, how: str) -> None:
    path = plain_place.account.home / "image.tar"
    OTHERS[how](path)
    plain_place.refused(f"oci-archive:{path}")
