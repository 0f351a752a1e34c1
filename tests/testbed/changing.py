# SPDX-License-Identifier: Apache-2.0
"""Files that give other bytes the second time: a FUSE file system, ``MOUNT SOURCE open|read COMMAND``.

Speaks the kernel's protocol itself (linux/fuse.h): a library would cache and be sensible.  Serves the tree
SOURCE, read-only.  A file whose twin ``NAME.second`` exists is served from that from the second opening on
(``open``), or from the second read of its first byte on (``read``).  Then runs the rest of its command line
in the same mount namespace and ends with its status.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
import threading

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, INIT, OPENDIR, BATCH_FORGET = 1, 2, 3, 14, 15, 18, 26, 27, 42
ANSWERLESS = (FORGET, BATCH_FORGET)
DIRECT_IO = 1
_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ENOENT, _ENOSYS = 2, 38


class Server:
    """Answers requests of one mount.  Node 1 is the root."""

    def __init__(self, device: int, source: str, when: str) -> None:
        self._device = device
        self._paths = {1: source}
        self._when = when
        self._opened: dict[str, int] = {}
        self._started: dict[str, int] = {}

    def serve(self) -> None:
        """Until the mount is gone."""
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError:
                return
            _, code, unique, node, *_ = _IN.unpack_from(request)
            if code in ANSWERLESS:
                continue
            try:
                error, body = 0, self._answer(code, node, request[_IN.size :])
            except OSError as problem:
                error, body = -(problem.errno or _ENOENT), b""
            os.write(self._device, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def _answer(self, code: int, node: int, body: bytes) -> bytes:
        if code == INIT:
            return struct.pack("<IIIIHHI", 7, 31, 0, 0, 0, 0, 1 << 16) + bytes(40)
        path = self._paths.get(node, "")
        if code == LOOKUP:
            return self._lookup(f"{path}/{os.fsdecode(body.rstrip(bytes(1)))}")
        if code == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node, path)
        if code in (OPEN, OPENDIR):
            self._opened[path] = self._opened.get(path, 0) + 1
            return struct.pack("<QII", self._opened[path], DIRECT_IO, 0)
        if code == READ:
            handle, offset, size = struct.unpack_from("<QQI", body)
            return self._read(path, handle, offset, size)
        if code == RELEASE:
            return b""
        raise OSError(_ENOSYS, "")

    def _lookup(self, path: str) -> bytes:
        os.lstat(path)
        node = next((number for number, known in self._paths.items() if known == path), len(self._paths) + 1)
        self._paths[node] = path
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node, path)

    def _attributes(self, node: int, path: str) -> bytes:
        status = os.lstat(path)
        mode = stat.S_IFMT(status.st_mode) | (0o755 if stat.S_ISDIR(status.st_mode) else 0o644)
        return struct.pack(
            "<QQQQQQIIIIIIIIII", node, status.st_size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )

    def _read(self, path: str, handle: int, offset: int, size: int) -> bytes:
        if offset == 0:
            self._started[path] = self._started.get(path, 0) + 1
        second = (handle if self._when == "open" else self._started[path]) > 1
        twin = f"{path}.second"
        with open(twin if second and os.path.exists(twin) else path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def mount(point: str) -> int:
    """Mount an unserved file system; returns its device descriptor.  Raises OSError."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"changing", os.fsencode(point), b"fuse.changing", ctypes.c_ulong(1 | 2 | 4), options):
        raise OSError(ctypes.get_errno(), "mount")
    return device


def main() -> int:
    """Serve, run the command, return its status."""
    point, source, when, *command = sys.argv[1:]
    server = Server(mount(point), source, when)
    threading.Thread(target=server.serve, daemon=True).start()
    child = os.posix_spawnp(command[0], command, os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
