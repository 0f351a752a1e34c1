# SPDX-License-Identifier: Apache-2.0
"""Making root's own what the site's account made: nobody changes it later."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcpod.errors import StoreUnusable
from hpcpod.images.stores.takeover import own_tree, take_over
from hpcpod.images.unpacking.tree import remove_tree
from tests.integration.site.conftest import ACCOUNT, FIRST_USER
from tests.integration.site.test_pull import others

pytestmark = pytest.mark.needs("root", "plain")


def entry_of_account(path: Path, count: int = 0) -> int:
    """An entry as the account makes them, with a tree (of `count` more files) and no documents; open."""
    (path / "rootfs" / "d").mkdir(parents=True)
    for name in ("f", *map(str, range(count))):
        (path / "rootfs" / "d" / name).write_text("x")
    for each in (path, *path.rglob("*")):
        os.chown(each, ACCOUNT, ACCOUNT)
    return os.open(path, os.O_RDONLY)


def taken(path: Path, fd: int) -> str:
    """What root says when it takes the entry over; empty when it does."""
    try:
        take_over(fd, {"rootfs"}, ACCOUNT)
    except StoreUnusable as error:
        return error.message
    finally:
        os.close(fd)
    assert others(path) == []
    return ""


def test_taking_over(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    assert taken(path, entry_of_account(path)) == ""
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_file_that_somebody_has_open_for_writing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    fd = entry_of_account(path)
    with (path / "rootfs" / "d" / "f").open("r+"):
        assert "a process has it open for writing" in taken(path, fd)


LOOSEN = """
import os
found = [os.open(f"rootfs/d/{name}", os.O_RDONLY) for name in os.listdir("rootfs/d")]
print(flush=True)
for fd in found:  # in the order in which root takes them
    try:
        while True:
            os.fchmod(fd, 0o666)
    except PermissionError:
        pass
"""


def test_a_process_that_keeps_changing_the_bits(tmp_path: Path) -> None:
    """It wins each race while the file is its own, and none after that."""
    for number in range(3):
        path = tmp_path / f"entry-{number}"
        fd = entry_of_account(path, count=300)
        words = [sys.executable, "-c", LOOSEN]
        with subprocess.Popen(words, cwd=path, stdout=subprocess.PIPE, user=ACCOUNT, group=ACCOUNT) as other:
            try:
                assert other.stdout is not None and other.stdout.readline() == b"\n"
                assert taken(path, fd) == ""
            finally:
                other.kill()
        assert others(path) == []


@pytest.mark.needs("strace")
def test_a_file_system_without_leases_is_refused(tmp_path: Path) -> None:
    """As over NFS: nobody could say that the account has the file open no more."""
    path = tmp_path / "entry"
    os.close(entry_of_account(path))
    script = (
        "import os, sys; from hpcpod.images.stores.takeover import take_over;"
        f"take_over(os.open(sys.argv[1], os.O_RDONLY), {{'rootfs'}}, {ACCOUNT})"
    )
    words = ["strace", "-f", "-o", str(tmp_path / "trace"), "-P", str(path / "rootfs" / "d" / "f")]
    words += ["-e", "inject=fcntl:error=EINVAL", sys.executable, "-c", script, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "f: its file system cannot say whether it is open for writing (EINVAL)" in done.stderr


def fifo(path: Path) -> None:
    os.mkfifo(path)


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def open_to_all(path: Path) -> None:
    path.write_text("root's")
    path.chmod(0o666)


def set_user_id(path: Path) -> None:
    path.write_text("root's")
    path.chmod(0o4755)


def secret(path: Path) -> None:
    path.write_text("root's")
    path.chmod(0o640)


def program_of_roots(path: Path) -> None:
    path.write_text("root's")
    path.chmod(0o755)


def directory_of_roots(path: Path) -> None:
    path.mkdir(0o700)


def of_somebody_else(path: Path) -> None:
    path.write_text("x")
    os.chown(path, FIRST_USER, FIRST_USER)


def directory_of_somebody_else(path: Path) -> None:
    path.mkdir()
    os.chown(path, FIRST_USER, FIRST_USER)


@pytest.mark.parametrize(
    "make",
    [
        fifo,
        socket_file,
        open_to_all,
        set_user_id,
        secret,
        program_of_roots,
        directory_of_roots,
        of_somebody_else,
        directory_of_somebody_else,
    ],
)
def test_what_no_image_has_is_refused_and_left_as_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """The account may hang links to files of others into its directories (link(2))."""
    path = tmp_path / "entry"
    fd = entry_of_account(path)
    odd = path / "rootfs" / "d" / "odd"
    make(odd)
    before = odd.lstat()
    assert taken(path, fd).startswith("site store: ")
    after = odd.lstat()
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


@contextlib.contextmanager
def closed(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


@pytest.mark.parametrize("owner", [0, ACCOUNT])
def test_documents_with_other_names_are_refused(tmp_path: Path, owner: int) -> None:
    path, other = tmp_path / "entry", tmp_path / "other"
    fd = entry_of_account(path)
    other.write_text("secret")
    other.chmod(0o640)
    os.chown(other, owner, owner)
    (path / "meta.json").hardlink_to(other)
    with closed(fd), pytest.raises(StoreUnusable, match=r"meta\.json: (has|not)"):
        take_over(fd, {"rootfs", "meta.json"}, ACCOUNT)
    assert other.stat().st_mode & 0o777 == 0o640
    own_tree(str(path), ACCOUNT)  # half-way taken over: it can be removed all the same
    remove_tree(str(path))
    assert other.stat().st_mode & 0o777 == 0o640 and not path.exists()


def test_a_tree_deeper_than_any_image(tmp_path: Path) -> None:
    """Made by an account that obeys no rule: refused, and removed all the same."""
    path = tmp_path / "entry"
    fd = entry_of_account(path)
    script = "import os\nfor _ in range(3000):\n os.mkdir('e', 0o700)\n os.chdir('e')"
    subprocess.run(
        [sys.executable, "-c", script], cwd=path / "rootfs", check=True, user=ACCOUNT, group=ACCOUNT
    )
    assert "deeper than 400 directories" in taken(path, fd)
    own_tree(str(path), ACCOUNT)
    remove_tree(str(path))
    assert not path.exists()


@pytest.mark.parametrize("name", ["more", "pinned"])
def test_names_that_no_entry_has_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "entry"
    fd = entry_of_account(path)
    (path / name).write_text("")
    assert f"{name}: more or less than it should have" in taken(path, fd)
