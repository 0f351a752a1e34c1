# SPDX-License-Identifier: Apache-2.0
"""The first process of a guest (tests/testbed/guest.py): runs the commands that come over a serial line."""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
import tty
from pathlib import Path
from typing import Any

from tests.testbed.forkserver import import_everything

LINE = "/dev/ttyS1"
PR_SET_DUMPABLE = 4


def perform(request: dict) -> dict:
    """What a command, or a function (``module:name``) with its arguments, gave."""
    words = request["argv"]
    if "call" in request:
        return _forked(request)
    if request["uid"]:
        words = [
            "setpriv",
            f"--reuid={request['uid']}",
            f"--regid={request['uid']}",
            "--clear-groups",
            *words,
        ]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **request["env"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=request["timeout"],
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return {"status": 124, "out": _text(error.stdout), "err": f"{error}\n{_text(error.stderr)}"}
    except OSError as error:
        return {"status": 127, "out": "", "err": str(error)}
    return {"status": done.returncode, "out": _text(done.stdout), "err": _text(done.stderr)}


def _forked(request: dict) -> dict:
    """Call the function in a process of its own: starting Python here takes seconds, forking it does not."""
    with (
        tempfile.TemporaryFile(dir="/dev/shm") as output,
        tempfile.TemporaryFile(dir="/dev/shm") as errors,
    ):
        return _called(request, output, errors)


def _called(request: dict, *outputs: Any) -> dict:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(int(request["timeout"]))
            for target, file in enumerate(outputs, 1):
                os.dup2(file.fileno(), target)
            if request["uid"]:
                os.setgroups([])
                os.setresgid(*[request["uid"]] * 3)
                os.setresuid(*[request["uid"]] * 3)
                # as after an exec: it may look at itself in /proc
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            os.environ.update(request["env"])
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w")) for fd in (1, 2))
            module, _, name = request["call"].partition(":")
            answer = getattr(importlib.import_module(module), name)(*request["argv"])
            print(json.dumps(answer), flush=True)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else bool(end.code)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    for file in outputs:
        file.seek(0)
    out, err = (_text(file.read()) for file in outputs)
    return {"status": os.waitstatus_to_exitcode(status), "out": out, "err": err}


def hpcpod(*words: str) -> None:
    """Be the command ``hpcpod WORDS``."""
    from hpcpod.cli.main import main

    os.umask(0o022)
    sys.argv = ["hpcpod", *words]
    main()


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="backslashreplace")


def reap() -> None:
    """Collect orphans, which are the first process's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def make_nodes() -> None:
    """Devices whose modules are loaded when they are opened, as an init system makes them."""
    listing = Path("/lib/modules", os.uname().release, "modules.devname")
    for row in listing.read_text().splitlines():
        if not row.startswith("#"):
            _, name, number = row.split()
            major, _, minor = number[1:].partition(":")
            path = Path("/dev", name)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                kind = stat.S_IFCHR if number[0] == "c" else stat.S_IFBLK
                os.mknod(path, kind | 0o600, os.makedev(int(major), int(minor)))
    Path("/dev/fuse").chmod(0o666)


def main() -> None:
    make_nodes()
    line = os.open(LINE, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(line)
    with open(line, "rb", closefd=False) as requests:
        import_everything()
        _send(line, b"ready\n")
        for request in requests:
            _send(line, json.dumps(perform(json.loads(request))).encode() + b"\n")
            reap()


def _send(line: int, answer: bytes) -> None:
    while answer:
        answer = answer[os.write(line, answer) :]


if __name__ == "__main__":
    main()
