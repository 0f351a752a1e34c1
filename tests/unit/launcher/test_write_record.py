# SPDX-License-Identifier: Apache-2.0
"""A record is put in its place whole, or nothing is left.

Each in a process of its own: a limit on file sizes would count for the test run's output too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcpod.errors import StoreUnusable
from hpcpod.launcher.prepare import write_record

LIMITED = """
import resource, signal, sys
from hpcpod.errors import HpcpodError
from hpcpod.launcher.prepare import write_record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_record(sys.argv[1], b"x" * 100)
except HpcpodError as error:
    sys.exit(error.slug)
"""


@pytest.mark.parametrize(("limit", "slug", "left"), [(10, "store-unusable", []), (100, "", ["plan"])])
def test_a_record_is_whole_or_not_there(tmp_path: Path, limit: int, slug: str, left: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "plan"), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == slug
    assert [path.name for path in tmp_path.iterdir()] == left


def test_a_record_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"old")
    assert (
        subprocess.run(
            [sys.executable, "-c", LIMITED, str(tmp_path / "plan"), "1000"], check=False
        ).returncode
        == 0
    )
    assert (tmp_path / "plan").read_bytes() == b"x" * 100


def test_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="No such file"):
        write_record(str(tmp_path / "absent" / "plan"), b"words")
