# SPDX-License-Identifier: Apache-2.0
"""A server that has hpcpod imported and forks a process for each command; injector.py starts and asks it.

``python3 -m tests.testbed.forkserver SOCKET LIBRARY``.  A request is one line of JSON on a connection.  For
each, a process is forked that loads the injector and forks the command; it traces the command to its end, and
answers with lines of JSON.  The server ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SHOWN = 4000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)


def import_everything() -> None:
    """Import what a command may, before it is forked: an import is no state that a kill could harm."""
    for name in ("hpcpod.cli", "hpcpod.images", "hpcpod.launcher"):
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    for name in ("isal.igzip", "isal.isal_zlib", "zstandard", "encodings.idna"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _become_machine(machine: Mapping[str, str]) -> None:
    from tests.testbed import syscalls

    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.bind(machine["boot"], BOOT_ID)
    socket.sethostname(machine["name"])


def _become_command(request: Mapping[str, Any], output: int, errors: int) -> None:
    """Make this process the one that the request describes."""
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((null, output, errors)):
        os.dup2(source, target)
    if request["machine"]:
        _become_machine(request["machine"])
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    uid = request["uid"]
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after an exec: it may look at itself in /proc
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    os.umask(0o022)
    sys.argv = ["hpcpod", *request["words"]]
    sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w")), io.TextIOWrapper(io.FileIO(2, "w"))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _command(library: Any, gate: int) -> NoReturn:
    """Run the command line as a program of its own would, and end."""
    from hpcpod.cli.main import main

    status: object = 1
    if library.injector_submit(gate) != 0:
        os._exit(126)
    try:
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1 if status else 0)


def _read_all(fd: int) -> str:
    """What was written into a pipe whose writers have ended."""
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")[-_SHOWN:]


def _serve(connection: socket.socket, library_path: str) -> None:
    """Deal with one request, in a process of its own.  What the command prints must fit into a pipe."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    request = json.loads(connection.makefile("r").readline())
    library = ctypes.CDLL(library_path)
    for rule in request["rules"]:
        assert library.injector_rule(rule.encode()) == 0, f"rule {rule}: not understood"
    gate, opened = os.pipe()
    output, to_output = os.pipe()
    errors, to_errors = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(opened)
            _become_command(request, to_output, to_errors)
            connection.close()
            _close_from_3(keep=gate)
            _command(library, gate)
        finally:
            os._exit(125)
    for fd in (gate, to_output, to_errors):
        os.close(fd)
    traced = library.injector_trace(child, opened, connection.fileno(), ctypes.c_double(request["seconds"]))
    if traced == 0:
        said = {"output": _read_all(output), "errors": _read_all(errors)}
        connection.sendall(json.dumps(said).encode() + b"\n")


def _close_from_3(keep: int) -> None:
    os.closerange(3, keep)
    os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _accept(listening: socket.socket, library: str) -> None:
    connection, _ = listening.accept()
    if os.fork() == 0:
        try:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(connection, library)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    connection.close()


def main() -> None:
    """Serve until standard input ends."""
    path, library = sys.argv[1:]
    import_everything()
    gc.freeze()  # collecting what all commands share would copy it into each
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([0, listening.fileno()], [], [])
        if 0 in ready:
            return
        _accept(listening, library)


if __name__ == "__main__":
    main()
