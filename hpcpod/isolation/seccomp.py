# SPDX-License-Identifier: Apache-2.0
"""The default system call filter: what a program in a pod may not ask of the kernel.

A list of what is denied, not of what is allowed: HPC programs use calls that allow-lists made for web
services lack (ptrace for debuggers, perf_event_open, process_vm_readv between ranks, move_pages, mbind,
userfaultfd, device ioctls), and new kernels bring more.  It is no boundary by itself.  A rootless pod
has no capabilities on the node, so most of these calls fail without it too; the filter keeps the kernel
code behind them out of reach and shuts the two doors that stay open: new user namespaces, which hand out
capabilities over that code, and terminal input forged for the shell outside.

libseccomp makes the BPF program, once: at build time this module writes ``seccomp-MACHINE.bpf`` beside
itself (``python -m hpcpod.isolation.seccomp OUT [MACHINE]``), because importing pyseccomp alone takes 40 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import zlib

from hpcpod.frozen import frozen

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h by uname(2)'s machine."""

CLONE_NEWUSER = 0x10000000
_LOW_32_BITS = 0xFFFFFFFF
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS, linux/bpf_common.h."""
INSTRUCTION = 8
"""Bytes of a struct sock_filter."""


@frozen
class Condition:
    """Only where argument & mask equals value."""

    argument: int
    mask: int
    value: int


@frozen
class Rule:
    """These calls fail with that errno, for a reason.

    A condition narrows them; a call that an architecture or an old libseccomp does not know is passed over.
    """

    calls: tuple[str, ...]
    reason: str
    errno: int = errno.EPERM
    condition: Condition | None = None


# fmt: off
RULES: tuple[Rule, ...] = (
    Rule(("init_module", "finit_module", "delete_module", "create_module", "query_module",
          "get_kernel_syms"),
         "kernel modules"),
    Rule(("kexec_load", "kexec_file_load", "reboot"),
         "another kernel, or none"),
    Rule(("swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "nfsservctl", "vhangup"),
         "administration of the node"),
    Rule(("mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr",
          "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
         "the pod's mounts are made before the program starts; parsers of file systems stay out of reach"),
    Rule(("setns",),
         "the pod is entered from outside only"),
    Rule(("unshare", "clone"),
         "a new user namespace gives capabilities over kernel code that is no business of a program's",
         condition=Condition(0, CLONE_NEWUSER, CLONE_NEWUSER)),
    Rule(("clone3",),
         "its flags lie in memory, where a filter cannot look; with ENOSYS the C library uses clone",
         errno=errno.ENOSYS),
    Rule(("bpf",),
         "programs in the kernel; tools that need it need capabilities as well"),
    Rule(("io_uring_setup", "io_uring_enter", "io_uring_register"),
         "system calls that no filter sees, and a record of holes; RHEL 9 turns it off for all"),
    Rule(("open_by_handle_at",),
         "reaches files around the pod's root"),
    Rule(("add_key", "request_key", "keyctl"),
         "keyrings are not part of a pod: keys of the user's other processes are in reach"),
    Rule(("settimeofday", "clock_settime", "clock_settime64", "stime"),
         "the node's clock; reading it by adjtimex stays possible"),
    Rule(("iopl", "ioperm", "uselib", "lookup_dcookie", "_sysctl", "sysfs", "ustat", "vm86", "vm86old",
          "modify_ldt"),
         "remains of old interfaces, ports among them"),
    Rule(("ioctl",),
         "TIOCSTI types into the terminal that the job was started from",
         condition=Condition(1, _LOW_32_BITS, TIOCSTI)),
    Rule(("ioctl",),
         "TIOCLINUX pastes into the console",
         condition=Condition(1, _LOW_32_BITS, TIOCLINUX)),
)
# fmt: on


def compile_default(machine: str = "") -> bytes:
    """The filter as an array of struct sock_filter for machine (uname(2)'s; the one we run on if empty).

    Calls of another architecture (i386 and x32 on x86_64, 32-bit ARM on aarch64) end the process: their
    numbers differ, so a filter that let them pass would be none.  Imports pyseccomp, about 40 ms.
    Raises KeyError for a machine not in ARCHITECTURES, OSError from libseccomp.
    """
    import pyseccomp

    architecture = ARCHITECTURES[machine or os.uname().machine]
    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    made.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    made.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree: 6 comparisons a call instead of 60
    if architecture != pyseccomp.system_arch():
        made.add_arch(architecture)
        made.remove_arch(pyseccomp.system_arch())
    for rule in RULES:
        for call in rule.calls:
            if pyseccomp.resolve_syscall(architecture, call) < 0:
                continue
            only = rule.condition
            arguments = (
                [pyseccomp.Arg(only.argument, pyseccomp.MASKED_EQ, only.mask, only.value)] if only else []
            )
            made.add_rule_exactly(pyseccomp.ERRNO(rule.errno), call, *arguments)
    return _exported(made)


def _exported(made: object) -> bytes:
    """The program that libseccomp writes to a descriptor, read back."""
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "w+b") as file:
        made.export_bpf(file)  # type: ignore[attr-defined]
        file.seek(0)
        program = file.read()
    if not program or len(program) % INSTRUCTION or len(program) > MAX_INSTRUCTIONS * INSTRUCTION:
        raise OSError(errno.EINVAL, f"libseccomp made a program of {len(program)} bytes")
    return program


def default_filter(cache: str) -> bytes:
    """The filter of this machine, as built with the package.

    Where the package has none (a checkout), it is compiled once and kept in cache, a directory of the
    user's own; a directory that cannot be written costs the time again, and is no error.
    """
    machine = os.uname().machine
    table = zlib.crc32(repr(RULES).encode())
    kept = os.path.join(cache, f"seccomp-{machine}-{table:08x}.bpf")
    for path in (os.path.join(os.path.dirname(__file__), f"seccomp-{machine}.bpf"), kept):
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            continue
    program = compile_default(machine)
    temporary = f"{kept}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with open(temporary, "xb") as file:
            file.write(program)
        os.rename(temporary, kept)  # whole or not at all: another process reads it meanwhile
    return program


def main(arguments: list[str]) -> None:
    """Write the filter to a file: OUT [MACHINE]."""
    out, *machine = arguments
    with open(out, "wb") as file:
        file.write(compile_default(*machine))


if __name__ == "__main__":
    main(sys.argv[1:])
