# SPDX-License-Identifier: Apache-2.0
"""Binds: how they are written, and which directories of the node are seen by default."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import UsageError
from hpcpod.launcher.binds import parse_bind, shadows_image, user_mounts
from hpcpod.model import Bind


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/a", Bind("/a", "/a")),
        ("/a/", Bind("/a", "/a")),
        ("//a//b/../c", Bind("/a/c", "/a/c")),
        ("/a:/b", Bind("/a", "/b")),
        ("/a:/b/../c", Bind("/a", "/c")),
        ("/a:/../../c", Bind("/a", "/c")),
        ("/a://b", Bind("/a", "/b")),
        ("/a::ro", Bind("/a", "/a", read_only=True)),
        ("/a:/b:rw", Bind("/a", "/b")),
        ("/a:/b:ro,optional", Bind("/a", "/b", read_only=True, optional=True)),
        ("data", Bind("/here/data", "/here/data")),
        ("../data:/d", Bind("/data", "/d")),
        (".:/w", Bind("/here", "/w")),
    ],
)
def test_the_forms_of_a_bind(word: str, expected: Bind) -> None:
    assert parse_bind(word, "/here") == expected


def test_relative_to_the_root() -> None:
    assert parse_bind("data", "/") == Bind("/data", "/data")


@pytest.mark.parametrize(
    "word",
    [
        "",
        ":",
        ":/b",
        "/a:b",
        "/a:/",
        "/a://",
        "/a:/.",
        "/a:/b/..",
        "/",
        "/a:/b:",
        "/a:/b:rx",
        "/a:/b:ro,rw",
        "/a:/b:ro:x",
        "/a:/b:RO",
    ],
)
def test_what_is_no_bind(word: str) -> None:
    with pytest.raises(UsageError):
        parse_bind(word, "/here")


@given(st.text(alphabet="/.ab:", max_size=12))
def test_a_bind_has_clean_absolute_paths_or_is_refused(word: str) -> None:
    try:
        bind = parse_bind(word, "/here")
    except UsageError:
        return
    for path in (bind.source, bind.target):
        assert path.startswith("/") and not path.startswith("//") and posixpath.normpath(path) == path
    assert bind.target != "/"


@pytest.mark.parametrize(
    "path", ["/", "/usr", "/usr/share/x", "/etc", "/proc/1/cwd", "/dev/shm", "/home", "/opt", "/tmp", "/sys"]
)
def test_directories_that_would_hide_the_image(path: str) -> None:
    assert shadows_image(path)


@pytest.mark.parametrize(
    "path", ["/home/alice", "/scratch", "/opt/site/x", "/root", "/users/a", "/usrlocal", "/mnt/a"]
)
def test_directories_that_would_not(path: str) -> None:
    assert not shadows_image(path)


@pytest.mark.parametrize(
    ("home", "cwd", "expected"),
    [
        ("/home/a", "/home/a", ["/home/a"]),
        ("/home/a", "/home/a/b", ["/home/a"]),
        ("/home/a", "/home/ab", ["/home/a", "/home/ab"]),  # a prefix of the string is no parent
        ("/home/a/b", "/home/a", ["/home/a/b", "/home/a"]),
        ("/home/a", "/tmp/x", ["/home/a"]),
        ("/home/a", "/tmpx", ["/home/a", "/tmpx"]),
        (None, "/scratch", ["/scratch"]),
        ("/usr/home", "/", []),
    ],
)
def test_home_and_current_directory(home: str | None, cwd: str, expected: list[str]) -> None:
    assert [mount.source for mount in user_mounts(home, cwd, ()) if isinstance(mount, Bind)] == expected


def test_binds_asked_for_come_last_and_in_order() -> None:
    mounts = user_mounts("/home/a", "/w", ("/x:/home/a/x", "/y"))
    assert [mount.target for mount in mounts if isinstance(mount, Bind)] == [
        "/home/a",
        "/w",
        "/home/a/x",
        "/y",
    ]
