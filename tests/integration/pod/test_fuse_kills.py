# SPDX-License-Identifier: Apache-2.0
"""A packed image's mount when its processes are killed, and when something else is where it should be."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods, alive, gone, member, step, wait_for
from tests.integration.pod.packed import Packed, end, packed_image
from tests.integration.pod.test_kills import kills

pytestmark = pytest.mark.needs("plain", "userns", "native", "fuse")

CALLS = (
    "flock", "fork", "setsid", "unshare", "fsopen", "fsmount", "fstatfs", "move_mount", "pivot_root",
    "umount2", "symlinkat", "renameat", "epoll_create1", "capset", "setns", "open_tree", "clone", "execve",
    "pread64", "writev",
)  # fmt: skip


@pytest.fixture
def packed(plain_pods: Pods) -> Iterator[Packed]:
    """The packed image with a plan for no options; in the end nothing of it is left."""
    made = packed_image(plain_pods)
    made.plan()
    yield made
    plain_pods.end()
    made.wait_gone()


def gc(packed: Packed) -> None:
    words = [str(packed.pods.command), "gc"]
    done = packed.pods.account.run(words, env={"HPCPOD_STORE": str(packed.pods.store)})
    assert done.returncode == 0, done.stderr


def lone(packed: Packed) -> subprocess.Popen[str]:
    """A lone run that is in its pod when this returns, and stays until its input is closed."""
    process = packed.pods.start("sh", "-c", "echo in; read line; cat $line", stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "in\n", process.communicate()
    return process


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(functools.partial(gone, pid), f"the death of {pid}")


# ------------------------------------------------------------------ kills


@pytest.mark.needs("strace")
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_wherever_a_process_is_killed_the_next_start_makes_do(packed: Packed, call: str, number: int) -> None:
    first = packed.pods.start("cat", "/etc/os-release", env=step(0, 2), before=kills(call, number))
    time.sleep(0.02 * number)
    for env in (step(1, 2), {}):
        done = packed.pods.run("cat", "/etc/os-release", env=env, timeout=20)
        assert (done.returncode, done.stdout) == (0, "ID=tiny\n"), done.stderr
    while first.poll() is None:  # strace goes when all that it follows are gone; it is never killed itself
        packed.pods.end_holders()
        time.sleep(0.02)
    packed.pods.end_holders()
    wait_for(lambda: not packed.servers(), "no server left")
    gc(packed)
    assert os.listdir(packed.mounts) == os.listdir(packed.pods.runtime / "pods") == []


def test_a_killed_holder_is_replaced_and_its_pods_go_on(packed: Packed) -> None:
    run = lone(packed)
    (first,) = packed.servers()
    kill(packed.holder())
    assert packed.pods.out("cat", "/etc/os-release") == "ID=tiny"
    second = lone(packed)
    assert len(packed.servers()) == 2 and len(packed.entries()) == 1
    assert run.communicate("/etc/hosts\n", timeout=10)[0] == "127.0.0.1 image\n" or run.returncode == 0
    wait_for(functools.partial(gone, first), "the end of the first server")
    assert end(second)[0] == 0
    packed.wait_gone()


def test_a_killed_server_ends_its_pods_with_an_error_and_the_next_start_makes_another(packed: Packed) -> None:
    run = lone(packed)
    (server,) = packed.servers()
    kill(server)
    assert packed.pods.out("cat", "/etc/os-release") == "ID=tiny"  # at once
    out, err = run.communicate("/etc/group\n", timeout=10)
    # SIGBUS, where it is the shell's own code that cannot be read any more (mmap(2))
    assert run.returncode == -signal.SIGBUS or "Transport endpoint is not connected" in err, (out, err)
    packed.wait_gone()


def test_a_pod_whose_server_was_killed_says_so(packed: Packed) -> None:
    first = member(packed.pods, 0, 3)
    (server,) = packed.servers()
    kill(server)
    done = packed.pods.run("ls", "/srv", env=step(1, 3))
    expected = "hpcpod: ls: the image can no longer be read (ENOTCONN) [exec]\nhint: the process that serves"
    assert done.returncode == 126 and done.stderr.startswith(expected), done.stderr
    kill_and_reap(first)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_killed_pod_takes_its_mount_along(packed: Packed, shared: bool) -> None:
    run = member(packed.pods, 0, 1 + shared) if shared else lone(packed)
    if shared:
        kill(packed.pods.holder())
        assert packed.servers()  # the rank is still there
    kill_and_reap(run)
    packed.wait_gone()


def kill_and_reap(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_all_killed_at_once_leave_no_process_and_what_gc_sweeps(packed: Packed) -> None:
    run = member(packed.pods, 0, 2)
    holders = (packed.holder(), packed.pods.holder())
    for pid in holders:
        os.kill(pid, signal.SIGKILL)
    kill_and_reap(run)
    wait_for(lambda: not packed.servers(), "no server left")
    assert os.listdir(packed.mounts) != []
    gc(packed)
    assert os.listdir(packed.mounts) == os.listdir(packed.pods.runtime / "pods") == []
    assert not any(alive(pid) for pid in holders)


# ------------------------------------------------------------------ what is in the way


def occupy(path: Path, what: str, elsewhere: Path) -> None:
    if what == "file":
        path.write_text("")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if what == "link" else "/none/such")


@pytest.mark.parametrize("what", ["file", "directory", "link", "dangling link"])
def test_what_took_the_name_is_put_aside_and_no_link_is_followed(packed: Packed, what: str) -> None:
    run = lone(packed)
    (entry,) = packed.entries()
    kill_and_reap(run)
    packed.wait_gone()
    elsewhere = packed.pods.account.home / "elsewhere"
    elsewhere.mkdir()
    for name in ("members", "record", "holder"):
        (elsewhere / name).write_text("mine")
    elsewhere.chmod(0o777)
    occupy(entry, what, elsewhere)
    assert packed.pods.out("cat", "/etc/os-release") == "ID=tiny"
    assert [path.read_text() for path in elsewhere.iterdir()] == ["mine"] * 3
    packed.wait_gone()


def test_a_link_in_place_of_the_verified_file_is_refused(packed: Packed) -> None:
    other = packed.file.with_name("other")
    packed.file.rename(other)
    packed.file.symlink_to(other)
    done = packed.pods.run("true")
    assert done.returncode == 125 and "[image-not-found]" in done.stderr and str(packed.file) in done.stderr


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"hsqs" + bytes(4096)])
def test_a_file_that_is_no_image_is_said_with_the_server_s_words(packed: Packed, content: bytes) -> None:
    packed.file.write_bytes(content)  # the same inode: the record stays current
    done = packed.pods.run("true")
    assert done.returncode == 125 and f"{packed.file}: {packed.server} ended: " in done.stderr
    assert done.stderr.endswith("[mount]\n") and done.stderr.count("\n") == 1
    assert "ended: [" not in done.stderr  # it says why
    packed.wait_gone()


def test_a_server_that_is_not_there_is_said_with_a_way_out(packed: Packed) -> None:
    packed.server = "/none/such/squashfuse_ll"
    packed.plan(options=["-B", "/usr"])
    done = packed.pods.run("true", options=["-B", "/usr"])
    assert done.returncode == 125
    assert done.stderr.startswith(
        "hpcpod: /none/such/squashfuse_ll: No such file or directory [mount]\nhint: "
    )
    packed.wait_gone()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "x" * 161])
def test_a_name_that_is_none_is_refused(packed: Packed, name: str) -> None:
    words = packed.words()
    words[4] = name
    packed.plan(options=["-B", "/usr"], root=words)
    done = packed.pods.run("true", options=["-B", "/usr"])
    assert done.returncode == 125 and "[record]" in done.stderr
