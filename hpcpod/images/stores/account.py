# SPDX-License-Identifier: Apache-2.0
"""Work that root hands to the store's own unprivileged account: whatever reads references and archives.

Root makes directories and mounts, and moves what is finished.  A flaw in a parser is then worth no more than
that account: it owns the directories of half-made images, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpcpod import errors
from hpcpod.errors import HpcpodError, StoreUnusable, as_hpcpod_error
from hpcpod.frozen import frozen
from hpcpod.kernel import die_with_parent, no_new_privileges

_MOST = 1 << 62
_HIGHEST = 2**32 - 2
_ANSWER = 64 * 1024
"""Bytes that an answer may have: digests, a name, a message."""


@frozen
class Account:
    """Who unpacks into the site's store."""

    uid: int
    gid: int


def find_account(name: str) -> Account:
    """The account of this name or number.  Raises StoreUnusable."""
    number = name.isascii() and name.isdigit()
    try:
        entry = pwd.getpwuid(int(name)) if number else pwd.getpwnam(name)
        found = Account(entry.pw_uid, entry.pw_gid)
    except (KeyError, OverflowError):
        if not number or not 0 < int(name) <= _HIGHEST:
            raise StoreUnusable(
                f"site store: account {name}: not known on this node",
                hint=f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}, "
                "or another [site] account in hpcpod.toml",
            ) from None
        found = Account(int(name), int(name))
    if found.uid == 0 or found.gid == 0:
        raise StoreUnusable(
            f"site store: account {name}: is root's",
            hint="images are unpacked by an account without privileges",
        )
    return found


@contextmanager
def as_account(account: Account, work: Callable[[], object]) -> Iterator[object]:
    """Run work() in a child that is the account for good; yields what it returned (as JSON knows it).

    The child lives until the body ends: what it made is its own until then (embryo.py).  An HpcpodError is
    raised here as it was there.
    """
    answer, child_answer = os.pipe2(os.O_CLOEXEC)
    child_release, release = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(account, work, child_answer, child_release, (answer, release))
    os.close(child_answer)
    os.close(child_release)
    try:
        raw = _read(answer, pid)
        yield _result(raw, account)
    finally:
        os.close(release)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _read(answer: int, pid: int) -> bytes:
    try:
        with open(answer, "rb") as file:
            return file.read(_ANSWER + 1)
    except BaseException:  # Ctrl-C, say: the terminal tells only us
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        raise


def _close_others(kept: tuple[int, int]) -> None:
    """Close what root had open, its locks above all: they belong to the description, which a child shares."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # listdir's own
                os.close(int(name))


def count_of(answer: object) -> int:
    """A number that the account answered.  Raises StoreUnusable for anything else."""
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < _MOST:
        raise StoreUnusable("site store: the unpacking process gave no proper answer")
    return answer


def _child(
    account: Account, work: Callable[[], object], answer: int, release: int, parents: tuple[int, int]
) -> None:
    """Become the account, work, answer, and stay until the parent lets go.  Does not return.

    parents: the parent's ends of both pipes.
    """
    status = 1
    try:
        # Away from root's terminal, which runs what is pushed into its input (ioctl_tty(2), TIOCSTI).
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        for fd in parents:
            os.close(fd)
        _close_others((answer, release))
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        no_new_privileges()
        die_with_parent()  # after setresuid(2), which undoes it
        os.umask(0o022)
        _write(answer, _answer(work))
        os.read(release, 1)
        status = 0
    finally:
        os._exit(status)


def _answer(work: Callable[[], object]) -> bytes:
    try:
        return json.dumps({"result": work()}).encode()
    except Exception as error:
        known = as_hpcpod_error(error)
        return json.dumps({"slug": known.slug, "message": known.message, "hint": known.hint}).encode()


def _write(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
    os.close(fd)


def _result(raw: bytes, account: Account) -> object:
    """What the child answered; it may be nonsense, as it read what users wrote."""
    if not raw:
        raise HpcpodError("site store: the unpacking process ended without an answer")
    try:
        if len(raw) > _ANSWER:
            raise ValueError
        answer = json.loads(raw)
        if "result" in answer:
            return answer["result"]
        slug, message, hint = answer["slug"], answer["message"], answer["hint"]
        if not all(isinstance(text, str) for text in (slug, message, hint or "")):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreUnusable("site store: the unpacking process gave no proper answer") from None
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HpcpodError)
    ]
    kind = next((kind for kind in kinds if kind.slug == slug), HpcpodError)
    if "EACCES" in message:
        hint = f"uid {account.uid} reads it, not root" + (f"; {hint}" if hint else "")
    raise kind(message, hint=hint or None)
