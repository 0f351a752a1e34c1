# SPDX-License-Identifier: Apache-2.0
"""Digests of a file's blocks, by as many processes as there are processors.

Processes and not threads: hashing 4 KiB takes 3 µs, after which a thread wants the interpreter's lock again.
Two processes are 1.9 times as fast as one (docs/reference/verified-at-use.md).
"""

from __future__ import annotations

import os
import signal

from hpcpod.errors import StoreUnusable
from hpcpod.images.stores.merkle import BLOCK, DIGEST, blocks_of
from hpcpod.kernel import die_with_parent

_PIECE = 1 << 20
"""Bytes read at a time."""
_SHARE = 16 << 20
"""Bytes for which another process is worth its making (a millisecond)."""
_MOST = 16


class Unreadable(OSError):
    """A part of the file cannot be read, or is not there.  position: of its first byte."""

    def __init__(self, code: int, position: int) -> None:
        super().__init__(code, os.strerror(code))
        self.position = position


def leaves_of(fd: int, size: int) -> bytes:
    """The SHA-256 of each block of the open file's first `size` bytes, the last filled up with zeros.

    Raises Unreadable; its errno is 0 where the file ends before.  StoreUnusable where a process that hashed
    was killed.
    """
    shares = _shares(size, min(len(os.sched_getaffinity(0)), _MOST))
    children = []
    try:
        for start, end in shares[1:]:
            try:
                children.append(_fork(fd, start, end))
            except OSError:  # no more processes for this user: then alone
                children.append((-1, -1, (start, end)))
        digests = [_hash(fd, *shares[0])]
        for index, (pid, pipe, share) in enumerate(children):
            if pid < 0:
                digests.append(_hash(fd, *share))
            else:
                children[index] = (-1, -1, share)
                digests.append(_collect(pid, pipe, share))
    finally:
        for pid, pipe, _ in children:
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                os.close(pipe)
                os.waitpid(pid, 0)
    return b"".join(digests)


def _shares(size: int, workers: int) -> list[tuple[int, int]]:
    """Parts of about the same length, each beginning at a block."""
    count = max(1, min(workers, size // _SHARE))
    length = -(-blocks_of(size) // count) * BLOCK
    return [(start, min(start + length, size)) for start in range(0, size, length)]


def _fork(fd: int, start: int, end: int) -> tuple[int, int, tuple[int, int]]:
    """A process that hashes a part: pid, the pipe that its digests come through, the part."""
    mine, its = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(mine)
        os.close(its)
        raise
    if pid == 0:
        status = 1
        try:
            # what comes from a terminal is for the parent, which ends this one
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            die_with_parent()
            os.close(mine)
            _send(its, _answer(fd, start, end))
            status = 0
        finally:
            os._exit(status)
    os.close(its)
    return pid, mine, (start, end)


def _answer(fd: int, start: int, end: int) -> bytes:
    """``d`` and the digests, or ``e`` and what went wrong."""
    try:
        return b"d" + _hash(fd, start, end)
    except Unreadable as error:
        return b"e%d %d" % (error.errno or 0, error.position)


def _send(pipe: int, answer: bytes) -> None:
    rest = memoryview(answer)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _collect(pid: int, pipe: int, share: tuple[int, int]) -> bytes:
    with open(pipe, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    if answer[:1] == b"e" and status == 0:
        code, position = answer[1:].split()
        raise Unreadable(int(code), int(position))
    start, end = share
    if status != 0 or answer[:1] != b"d" or len(answer) != 1 + blocks_of(end - start) * DIGEST:
        raise StoreUnusable(
            f"image: the process that compared bytes {start} to {end} ended with status {status}",
            hint="memory may have run out; try again",
        )
    return answer[1:]


def _hash(fd: int, start: int, end: int) -> bytes:
    """The digests of the blocks of a part.  Raises Unreadable."""
    from hashlib import sha256

    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    blocks = [view[at : at + BLOCK] for at in range(0, _PIECE, BLOCK)]
    digests = []
    for position in range(start, end, _PIECE):
        length = min(_PIECE, end - position)
        _read(fd, view[:length], position)
        tail = -length % BLOCK
        view[length : length + tail] = bytes(tail)
        digests.append(b"".join([sha256(block).digest() for block in blocks[: blocks_of(length)]]))
    return b"".join(digests)


def _read(fd: int, piece: memoryview, position: int) -> None:
    """Fill the piece from the file.  Raises Unreadable."""
    done = 0
    while done < len(piece):
        try:
            count = os.preadv(fd, [piece[done:]], position + done)
        except OSError as error:
            raise Unreadable(error.errno or 0, position + done) from None
        if count == 0:
            raise Unreadable(0, position + done)
        done += count
