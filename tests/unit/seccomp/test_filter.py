# SPDX-License-Identifier: Apache-2.0
"""The default filter, run instruction by instruction for both machines: what it denies, and how."""

from __future__ import annotations

import errno
import functools
import os
import struct
from pathlib import Path

import pytest

from hpcpod.isolation import seccomp

pyseccomp = pytest.importorskip("pyseccomp", reason="it compiles the filter at build time")

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
MACHINES = sorted(seccomp.ARCHITECTURES)
I386, ARM = 0x40000003, 0x40000028
X32 = 0x40000000


compiled = functools.cache(seccomp.compile_default)


def run(program: bytes, data: bytes) -> int:
    """Run classic BPF as the kernel does for seccomp (linux/filter.h): only the instructions used here."""
    code = list(struct.iter_unpack("<HBBI", program))
    register = at = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            register = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            register &= value
        elif operation == 0x06:  # BPF_RET | BPF_K
            return value
        elif operation == 0x05:  # BPF_JMP | BPF_JA
            at += value
        else:  # BPF_JMP with BPF_JEQ, BPF_JGT, BPF_JGE
            taken = {0x15: register == value, 0x25: register > value, 0x35: register >= value}[operation]
            at += if_true if taken else if_false


def answer(machine: str, call: str | int, *arguments: int, architecture: int | None = None) -> int:
    own = seccomp.ARCHITECTURES[machine]
    number = call if isinstance(call, int) else pyseccomp.resolve_syscall(own, call)
    values = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    head = (number, own if architecture is None else architecture, 0)
    return run(compiled(machine), struct.pack("<iIQ6Q", *head, *values))


def known(machine: str, call: str) -> bool:
    return bool(pyseccomp.resolve_syscall(seccomp.ARCHITECTURES[machine], call) >= 0)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_rule_denies_its_calls(machine: str) -> None:
    for rule in seccomp.RULES:
        arguments = [0, 0, 0]
        if rule.condition:
            arguments[rule.condition.argument] = rule.condition.value
        for call in filter(lambda name: known(machine, name), rule.calls):
            assert answer(machine, call, *arguments) == ERRNO | rule.errno, call


# What MPI, UCX, CUDA, debuggers, profilers and NUMA tools do.
ALLOWED = [
    "read",
    "openat",
    "mmap",
    "futex",
    "execve",
    "fork",
    "vfork",
    "wait4",
    "socket",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "perf_event_open",
    "kcmp",
    "pidfd_open",
    "pidfd_getfd",
    "memfd_create",
    "userfaultfd",
    "mbind",
    "set_mempolicy",
    "get_mempolicy",
    "move_pages",
    "migrate_pages",
    "sched_setaffinity",
    "sched_setscheduler",
    "personality",
    "mlockall",
    "shmget",
    "shmat",
    "semget",
    "prctl",
    "seccomp",
    "landlock_create_ruleset",
    "inotify_init1",
    "name_to_handle_at",
    "adjtimex",
    "clock_adjtime",
    "rseq",
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ALLOWED)
def test_what_hpc_programs_need_passes(machine: str, call: str) -> None:
    if not known(machine, call):
        assert call in ("fork", "vfork")  # arm64 has clone alone
        return
    assert answer(machine, call) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_conditions_look_at_the_bits_that_the_kernel_looks_at(machine: str) -> None:
    denied = ERRNO | errno.EPERM
    pthread, newuser = 0x003D0F00, seccomp.CLONE_NEWUSER
    assert answer(machine, "clone", pthread) == ALLOW
    assert answer(machine, "clone", pthread | newuser) == denied
    assert answer(machine, "unshare", 0x400) == ALLOW
    assert answer(machine, "unshare", newuser | 0x400) == denied
    assert answer(machine, "ioctl", 1, 0x5413) == ALLOW
    # The kernel takes 32 bits of an ioctl's number: what stands above them must not hide it.
    assert answer(machine, "ioctl", 1, 0xDEAD00000000 | seccomp.TIOCSTI) == denied


@pytest.mark.parametrize(("machine", "foreign"), [("x86_64", I386), ("aarch64", ARM)])
def test_a_foreign_architecture_ends_the_process(machine: str, foreign: int) -> None:
    assert answer(machine, 20, architecture=foreign) == KILL_PROCESS


def test_x32_ends_the_process() -> None:
    assert answer("x86_64", X32 | 39) == KILL_PROCESS


def test_the_module_writes_the_file_that_the_package_ships(tmp_path: Path) -> None:
    out = tmp_path / "filter.bpf"
    seccomp.main([str(out), "aarch64"])
    assert out.read_bytes() == seccomp.compile_default("aarch64")


def test_the_default_is_compiled_once(tmp_path: Path) -> None:
    assert seccomp.default_filter(str(tmp_path / "absent")) == compiled(os.uname().machine)
    assert seccomp.default_filter(str(tmp_path)) == compiled(os.uname().machine)
    for file in tmp_path.iterdir():
        file.write_bytes(b"kept")
        assert seccomp.default_filter(str(tmp_path)) == b"kept"


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(KeyError):
        seccomp.compile_default("riscv64")


def test_the_reference_lists_every_rule() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "reference" / "seccomp.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(seccomp.RULES)
    for row, rule in zip(rows, seccomp.RULES, strict=True):
        assert row.endswith(f"| {errno.errorcode[rule.errno]} | {rule.reason} |")
        assert [word for word in row.split("`")[1::2] if word.islower()] == list(rule.calls)
