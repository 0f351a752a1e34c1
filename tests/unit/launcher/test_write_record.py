# SPDX-License-Identifier: Apache-2.0
"""Writing the sealed record: whole or not at all, and nothing beside it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpod.errors import StoreUnusable
from hpcpod.launcher.prepare import write_record


@pytest.fixture
def little_room() -> Iterator[None]:
    """Files end at 10 bytes; Python ignores the signal, so that write(2) says EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_appears_whole(tmp_path: Path) -> None:
    write_record(str(tmp_path / "plan"), b"words")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"words"]


def test_where_there_is_no_room_nothing_is_left(tmp_path: Path, little_room: None) -> None:
    with pytest.raises(StoreUnusable, match=r"plan: File too large"):
        write_record(str(tmp_path / "plan"), bytes(100))
    assert os.listdir(tmp_path) == []


def test_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="No such file"):
        write_record(str(tmp_path / "absent" / "plan"), b"words")
