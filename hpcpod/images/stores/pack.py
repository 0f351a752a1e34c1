# SPDX-License-Identifier: Apache-2.0
"""An unpacked tree as a file system in one file: squashfs or EROFS, by their own projects' programs.

The same tree gives the same bytes: no times of making, no random identity, all files of one owner.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from hpcpod.errors import HpcpodError, StoreFull, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.stores import fsverity, merkle
from hpcpod.images.stores.forms import FormFacts
from hpcpod.images.stores.leaves import Unreadable, leaves_of
from hpcpod.images.stores.store import TREE
from hpcpod.images.unpacking.tree import remove_tree
from hpcpod.kernel import die_with_parent
from hpcpod.log import shown
from hpcpod.model import Form

_POLL_SECONDS = 5.0
_MEMORY = "128M"
"""What mksquashfs may take for its buffers; its own choice is a quarter of the machine's."""
_MADE = "4102444800"
"""When a file system says that it was made: 2100, because mkfs.erofs lets no file be newer than that."""
_UUID = "00000000-0000-4000-8000-000000000000"
"""EROFS wants one; nothing here mounts by it."""


def pack_words(form: Form, facts: FormFacts, tree: str, file: str, owner: tuple[int, int]) -> list[str]:
    """The command that packs a tree.  owner: uid and gid of all files in it.

    zstd at level 1 and lz4: packing costs about as much as unpacking did, reading is fast.
    """
    uid, gid = owner
    if form is Form.SQUASHFS:
        words = [facts.mksquashfs, tree, file, "-noappend", "-no-progress", "-quiet", "-no-xattrs"]
        words += ["-comp", "zstd", "-Xcompression-level", "1", "-b", "128K", "-mkfs-time", "0"]
        # by default it makes an empty file of what it cannot read, and succeeds
        words += ["-mem", _MEMORY, "-exit-on-error", "-no-recovery"]
        return [*words, "-force-uid", str(uid), "-force-gid", str(gid)]
    words = [facts.mkfs_erofs, "-zlz4", "-x-1", "-U", _UUID, "--preserve-mtime", "--quiet"]
    return [*words, f"--force-uid={uid}", f"--force-gid={gid}", file, tree]


@frozen
class Packed:
    """What an image became.  disk: bytes it takes.  root, length: of the packed file, as in meta.json."""

    disk: int
    root: str = ""
    length: int = 0


def pack(form: Form, facts: FormFacts, tree: str, owner: tuple[int, int], beat: Callable[[], None]) -> Packed:
    """Pack the tree into a file beside it, with its hash blocks, and remove the tree.

    Where the file system has fs-verity, nobody can write the file any more.  beat: called every few seconds
    while the program works.  Raises StoreUnusable, OSError.
    """
    file = f"{tree}.{form.value}"
    # mksquashfs takes either this or -mkfs-time
    times = {"SOURCE_DATE_EPOCH": _MADE} if form is Form.EROFS else {}
    _run(pack_words(form, facts, tree, file, owner), times, beat)
    remove_tree(tree)
    beat()
    fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # whole blocks, as a block device has them; both file systems say themselves where they end
        length = merkle.blocks_of(os.fstat(fd).st_size) * merkle.BLOCK
        os.truncate(fd, length)
        root, blocks = _hashed(fd, file, length)
    finally:
        os.close(fd)
    beat()
    disk = _write(f"{os.path.dirname(file)}/{TREE}", blocks)
    return Packed(disk + _protect(file, root, length), root, length)


def _hashed(fd: int, file: str, length: int) -> tuple[str, bytes]:
    if length == 0:
        raise StoreUnusable(f"{shown(file)}: empty after it was packed")
    try:
        return merkle.tree_of(leaves_of(fd, length))
    except Unreadable as error:
        what = os.strerror(error.errno or 0).lower() if error.errno else "ends there"
        raise StoreUnusable(f"{shown(file)}: at byte {error.position}: {what}") from None


def _write(path: str, content: bytes) -> int:
    """Make a file; how many bytes it takes on the disk.  Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def _protect(file: str, root: str, length: int) -> int:
    """Have the kernel check the file from now on, where it can; how many bytes it takes on the disk.

    Raises StoreUnusable where the kernel reads something else in it than was hashed; OSError.
    """
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        expected = merkle.measurement(root, length)
        if fsverity.enable(fd) and (found := fsverity.measure(fd)) != expected:
            raise StoreUnusable(f"{shown(file)}: fs-verity digest {found}, expected {expected}")
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def _run(words: Sequence[str], variables: Mapping[str, str], beat: Callable[[], None]) -> None:
    """Run the packer with nothing of the caller's environment.  Raises StoreUnusable."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **variables}
    try:
        process = subprocess.Popen(
            words,
            env=environment,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread runs here any more
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise StoreUnusable(f"{words[0]}: {os.strerror(error.errno or 0).lower()}") from None
    with process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    beat()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise _failed(words[0], process.returncode, output.decode(errors="replace"))


def _failed(program: str, status: int, output: str) -> HpcpodError:
    reasons = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    full = [line for line in output.splitlines() if any(reason in line for reason in reasons)]
    said = full[:1] or output.strip().splitlines()[-1:] or ["said nothing"]
    message = f"{program}: exit status {status}: {shown(said[0])}"
    if full:
        return StoreFull(message, hint="hpcpod image gc frees space; --rootfs=dir needs no second copy")
    return StoreUnusable(message)
