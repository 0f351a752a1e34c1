# SPDX-License-Identifier: Apache-2.0
"""Where the store and the run-time directory may be, and what is said of a place that will not do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hpcpod.config import runtime_directory, store_directory
from hpcpod.errors import StoreUnusable

Find = Callable[[Mapping[str, str], int], str]
BOTH = pytest.mark.parametrize(
    ("variable", "find"), [("HPCPOD_STORE", store_directory), ("HPCPOD_RUNTIME", runtime_directory)]
)


def said(variable: str, find: Find, path: Path, uid: int | None = None) -> str:
    with pytest.raises(StoreUnusable) as caught:
        find({variable: str(path)}, os.getuid() if uid is None else uid)
    assert str(path) in caught.value.message
    return caught.value.message.partition(f"{path}: ")[2]


@BOTH
def test_what_is_wrong_with_a_place_is_named(variable: str, find: Find, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "own").mkdir(mode=0o700)
    assert said(variable, find, tmp_path / "open") == "mode 1777, expected 0700: others could enter"
    assert said(variable, find, tmp_path / "file") == "not a directory"
    assert said(variable, find, tmp_path / "link") == "a symbolic link, not a directory"
    assert (
        said(variable, find, tmp_path / "none" / "x") == "cannot be made: no such file or directory (ENOENT)"
    )
    assert said(variable, find, tmp_path / "file" / "x").startswith("cannot be ")
    mine = os.getuid()
    theirs = said(variable, find, tmp_path / "own", mine + 1)
    assert theirs == f"of uid {mine}, expected {mine + 1}, who runs this"
    assert find({variable: str(tmp_path / "own")}, mine) == str(tmp_path / "own")
