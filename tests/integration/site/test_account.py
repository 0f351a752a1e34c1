# SPDX-License-Identifier: Apache-2.0
"""The process that works for root as the site's account: what it reaches, and what root believes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import pytest

from hpcpod.errors import StoreUnusable
from hpcpod.images.stores.account import Account, as_account
from tests.integration.site.conftest import ACCOUNT

pytestmark = pytest.mark.needs("root", "plain")


INTO_THE_TERMINAL = """
import errno, fcntl, os, termios
from hpcpod.images.stores.account import Account, as_account

def push():
    said = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1)]
    try:
        fcntl.ioctl(2, termios.TIOCSTI, b"x")
    except OSError as error:
        said.append(errno.errorcode[error.errno])
    return said

with as_account(Account(65433, 65433), push) as answer:
    print(*answer)
"""


def test_the_account_cannot_type_into_roots_terminal() -> None:
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", INTO_THE_TERMINAL])
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has it open any more
        while part := os.read(terminal, 1000):
            said += part
    os.close(terminal)
    os.waitpid(pid, 0)
    assert said.split() == [b"/dev/null", b"/dev/null", b"EPERM"]


def answer_with(raw: bytes) -> Callable[[], object]:
    """Work that answers past what answers for it, as a parser that was taken over may."""

    others = os.listdir("/proc/self/fd")

    def work() -> object:
        for fd in sorted(set(os.listdir("/proc/self/fd")) - set(others)):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                    os.write(int(fd), raw)
        os._exit(0)

    return work


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense",
        b"\xff",
        b"[" * 60_000,
        b'{"result": "' + b"x" * 65_536 + b'"}',
        b"1",
        b'"a result"',
        b"[]",
        b"{}",
        b'{"slug": [], "message": "x", "hint": null}',
        b'{"slug": "image-invalid", "message": {"EACCES": 1}, "hint": null}',
        b'{"slug": "image-invalid", "message": "x", "hint": 1}',
    ],
)
def test_answers_that_are_none(raw: bytes) -> None:
    with (
        pytest.raises(StoreUnusable, match=r"gave no proper answer$"),
        as_account(Account(ACCOUNT, ACCOUNT), answer_with(raw)),
    ):
        pytest.fail("it was taken for an answer")
