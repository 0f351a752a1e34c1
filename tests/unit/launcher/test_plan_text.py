# SPDX-License-Identifier: Apache-2.0
"""A plan in plain words."""

from __future__ import annotations

from hpcpod.cli.plan_text import plan_lines
from hpcpod.frozen import replace
from tests.unit.launcher.worlds import IMAGE, PACKED, plan


def lines(*words: str) -> list[str]:
    return plan_lines(plan(*words))


def test_mounts_are_said_in_words() -> None:
    text = lines("-B", "/a:/b", "-B", "/c:/c:ro")
    for line in (
        "bind     /proc",
        "bind     /sys (read-only)",
        "bind     /a -> /b",
        "bind     /c (read-only)",
        "bind     /tmp (if it exists)",
        "bind     $TMPDIR where it is set",
        "tmpfs    /dev/shm 1777 (half of memory)",
        "file     /etc/passwd (made)",
    ):
        assert line in text
    (kept,) = (line for line in text if line.startswith("kept "))
    assert kept.startswith("kept     /bin /boot ")
    assert kept.endswith("are the image's whatever TMPDIR says")


def test_where_the_root_comes_from() -> None:
    text = plan_lines(plan(image=PACKED))
    (rootfs,) = (line for line in text if line.startswith("rootfs "))
    assert rootfs.endswith(".squashfs/rootfs.squashfs (by /usr/bin/squashfuse_ll)")
    assert f"rootfs   {IMAGE.rootfs.path}" in lines()  # type: ignore[union-attr]


def test_what_the_environment_loses_is_one_line() -> None:
    text = lines("--env", "A=1", "--env", "LD_PRELOAD")
    (unset,) = (line for line in text if line.startswith("unset "))
    assert unset.startswith("unset    LD_*, GCONV_PATH, ")
    assert "set      A=1" in text
    assert "keep     LD_PRELOAD" in text
    assert "default  HOME=/root" in text
    assert r"set      ODD=a=b\nc" in text


def test_how_the_program_starts() -> None:
    text = lines()
    assert "root     read-only" in text
    assert "workdir  the current directory, else /opt/app, else /" in text
    assert "command  /opt/app/bin/start --serve" in text
    assert "seccomp  1 instructions" in text
    assert "mpi      not checked" in text
    bare = plan()
    nothing = plan_lines(replace(bare, rank=replace(bare.rank, command=(), seccomp=b"")))
    assert "command  (none: the image names no program)" in nothing
    assert "seccomp  no filter" in nothing
    assert "mpi      the image understands pmix" in lines("--mpi", "pmix")
