# SPDX-License-Identifier: Apache-2.0
"""The default filter in this machine's kernel: loaded in a child, which tries what it may and may not."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcpod.isolation import seccomp

LOADER = """
import ctypes, errno, fcntl, json, os, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
program = open(sys.argv[1], "rb").read()
buffer = ctypes.create_string_buffer(program, len(program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
word = Program(len(program) // 8, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0                      # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(word), 0, 0) == 0     # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(word) for word in arguments))
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""

BODY = """
done = {}
thread = threading.Thread(target=lambda: done.update(thread="ok")); thread.start(); thread.join()
done["process"] = subprocess.run(["/bin/true"]).returncode
done["fork"] = os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(0), 0)[1])
for name, (number, *arguments) in json.loads(sys.argv[2]).items():
    done[name] = call(number, *arguments)
print(json.dumps(done))
"""

NUMBERS = {
    "x86_64": {
        "unshare": 272,
        "setns": 308,
        "clone3": 435,
        "bpf": 321,
        "mount": 165,
        "keyctl": 250,
        "io_uring_setup": 425,
        "ioctl": 16,
        "pidfd_open": 434,
        "process_vm_readv": 310,
        "personality": 135,
    },
    "aarch64": {
        "unshare": 97,
        "setns": 268,
        "clone3": 435,
        "bpf": 280,
        "mount": 40,
        "keyctl": 219,
        "io_uring_setup": 425,
        "ioctl": 29,
        "pidfd_open": 434,
        "process_vm_readv": 270,
        "personality": 92,
    },
}


def start(tmp_path: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "filter.bpf"
    program.write_bytes(seccomp.default_filter(str(tmp_path)))
    words = [sys.executable, "-I", "-c", LOADER + body, str(program), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def tried(tmp_path: Path, calls: dict[str, list[int]]) -> dict[str, Any]:
    done = start(tmp_path, BODY, json.dumps(calls))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_the_kernel_answers(tmp_path: Path) -> None:
    number = NUMBERS[platform.machine()]
    found = tried(
        tmp_path,
        {
            "new user namespace": [number["unshare"], seccomp.CLONE_NEWUSER],
            "own file table": [number["unshare"], 0x400],
            "setns": [number["setns"], 0, 0],
            "clone3": [number["clone3"], 0, 0],
            "bpf": [number["bpf"], 0, 0, 0],
            "mount": [number["mount"], 0, 0, 0, 0, 0],
            "keyctl": [number["keyctl"], 0, 0],
            "io_uring": [number["io_uring_setup"], 1, 0],
            "TIOCSTI": [number["ioctl"], 0, seccomp.TIOCSTI, 0],
            "TIOCSTI behind bits": [number["ioctl"], 0, seccomp.TIOCSTI | 1 << 40, 0],
            "pidfd_open": [number["pidfd_open"], os.getpid(), 0],
            "process_vm_readv": [number["process_vm_readv"], os.getpid(), 0, 0, 0, 0, 0],
            "personality": [number["personality"], 0xFFFFFFFF],
        },
    )
    assert {name for name, result in found.items() if result == "EPERM"} == {
        *(
            "new user namespace",
            "setns",
            "bpf",
            "mount",
            "keyctl",
            "io_uring",
            "TIOCSTI",
            "TIOCSTI behind bits",
        ),
    }
    assert found["clone3"] == "ENOSYS"
    allowed = ("own file table", "pidfd_open", "process_vm_readv", "personality", "thread")
    assert {found[name] for name in allowed} == {"ok"}
    assert (found["process"], found["fork"]) == (0, 0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 and x32 are x86_64's")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("call(0x40000000 | 39)", id="x32"),
        pytest.param(
            "import mmap\n"
            "page = mmap.mmap(-1, 4096, prot=7)\n"
            "page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20; int 0x80; ret\n"
            "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()",
            id="i386",
        ),
    ],
)
def test_other_numbers_of_the_same_machine_end_the_process(tmp_path: Path, body: str) -> None:
    assert start(tmp_path, body).returncode == -signal.SIGSYS
