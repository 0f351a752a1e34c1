# SPDX-License-Identifier: Apache-2.0
"""Who uses an image of a store: processes that have it mounted, and when it was last used."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator

from hpcpod.frozen import frozen
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.stores.store import FACTS, META, PINNED, Store, StoredImage
from hpcpod.model import Form

_ROOT, _DEVICE = 3, 2
_LOOP, _MAPPED = "/dev/loop", "/dev/dm-"
_META_MAX = 1 << 20
"""Bytes of a meta.json that are read; one of ours has some hundred."""
_CAREFULLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@frozen
class MountLine:
    """A line of a mount table (proc(5), mountinfo): device ``major:minor``, root, what follows `` - ``.

    Where the source is a loop device, its file follows.
    """

    device: str
    root: str
    after: str


@frozen
class Mounted:
    """What each process of this node has mounted, read once: pid and the lines that may be of images."""

    tables: tuple[tuple[int, tuple[MountLine, ...]], ...]


def read_mounts() -> Mounted:
    """The mount tables of all processes that this user may look into.

    Those of other users cannot run from a user's store, whose mode is 0700; root sees all.
    """
    tables: dict[object, tuple[int, tuple[MountLine, ...]]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            # One table per mount namespace: the ranks of a node share theirs.
            namespace: object = os.stat(f"/proc/{name}/ns/mnt").st_ino
        except OSError:
            namespace = name
        if namespace in tables:
            continue
        lines = tuple(_lines(name))
        if lines and not _holds_only(lines):
            tables[namespace] = (int(name), lines)
    return Mounted(tuple(tables.values()))


def _holds_only(lines: tuple[MountLine, ...]) -> bool:
    """Whether this is the holder of a FUSE mount (native/fuse.c), which outlives its pods by a second.

    It has nothing but that mount; where it is used, pods have it too.
    """
    return len(lines) == 1 and lines[0].after.startswith("fuse.")


def _lines(pid: str) -> Iterator[MountLine]:
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                fields = before.split(" ")
                yield MountLine(fields[_DEVICE], fields[_ROOT], after + _file_of_loop(after))
    except OSError:
        return  # ended meanwhile, or another user's


def _file_of_loop(after: str) -> str:
    """Paths of the files below a mounted loop device, or below a dm-verity device over some; else empty."""
    source = after.split(" ")[1:2]
    if not source or not source[0].startswith((_LOOP, _MAPPED)):
        return ""
    name = os.path.basename(source[0])
    try:
        below = os.listdir(f"/sys/block/{name}/slaves") if source[0].startswith(_MAPPED) else [name]
        return " ".join(map(_backing_file, sorted(below)))
    except OSError:
        return ""


def _backing_file(loop: str) -> str:
    with open(f"/sys/block/{loop}/loop/backing_file", errors="replace") as file:
        return file.read()


def user_of(store: Store, image: StoredImage, mounted: Mounted, present: str = "") -> int | None:
    """A process that has the image mounted, or None.

    A pod shows it as the root of a bind mount (a directory), in an overlay whose source is the digest or
    among whose options the entry's name is, or as a mount whose source is the packed file or the entry.
    present: where the entry's directory is now, if it was moved since it could be mounted; a bind mount
    shows the new place, an overlay the old.
    """
    path = present or store.path(image.digest, Form(image.form))
    where, name = os.path.split(path)
    root = f"/{os.path.basename(where)}/{name}/rootfs"
    try:
        status = os.stat(path)
    except OSError:
        return None
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    packed = _device_of(store.mount_point(image.digest, Form(image.form))) if store.site else ""
    for pid, lines in mounted.tables:
        for line in lines:
            bound = line.device == device and line.root.endswith(root)
            if bound or (packed and line.device == packed) or _names(line, image):
                return pid
    return None


def _names(line: MountLine, image: StoredImage) -> bool:
    """Whether the source or the options of a mount name this entry, and not another form of the image."""
    plain = image.form == Form.DIRECTORY.value
    if image.digest in line.after:  # the front says of which image a mount is (native/root.c, fuse.c)
        if line.after.startswith("overlay "):
            return True  # the mount below it is the kernel's own copy: which form it is cannot be seen
        return line.after.startswith("fuse") and image.form == Form.SQUASHFS.value
    name = image.name
    start = line.after.find(name)
    if start < 0:
        return False
    return not plain or line.after[start + len(name) : start + len(name) + 1] != "."


def is_root_of_pod(path: str) -> bool:
    """Whether a process has mounted the tree of an entry that was moved to path."""
    where, name = os.path.split(path)
    root = f"/{os.path.basename(where)}/{name}/rootfs"
    digest = _digest_of(path)
    return any(
        line.root.endswith(root) or (digest and line.after.startswith("overlay ") and digest in line.after)
        for _, lines in read_mounts().tables
        for line in lines
    )


def _digest_of(path: str) -> str:
    """The digest in an entry's meta.json; empty for what is none.

    What lies in the garbage may be the account's that unpacks: it may be no entry, a link or a pipe.
    """
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = os.open(META, _CAREFULLY, dir_fd=directory)
        finally:
            os.close(directory)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return ""
            digest = str(json.loads(file.read(_META_MAX))["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return digest if is_digest(digest) else ""


def _device_of(path: str) -> str:
    """Device of what is mounted at path; empty where nothing is."""
    try:
        here, above = os.stat(path).st_dev, os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return ""
    return f"{os.major(here)}:{os.minor(here)}" if here != above else ""


def last_used(store: Store, image: StoredImage) -> float:
    """When a pod was last made from an image, seconds since 1970.

    Whoever makes a pod sets the time of the entry's directory, and so does root who mounts one.  In the
    site's store a user may not, but reads facts.json, which is read for nothing else, and the kernel notes
    that once a day (relatime, mount(8)).
    """
    path = store.path(image.digest, Form(image.form))
    try:
        stamps = [os.stat(path).st_mtime]
        if store.site:
            stamps.append(os.stat(f"{path}/{FACTS}").st_atime)
    except OSError:
        return 0.0
    return max(stamps)


def is_pinned(store: Store, image: StoredImage) -> bool:
    """Whether the image is never to be collected."""
    return os.path.lexists(f"{store.path(image.digest, Form(image.form))}/{PINNED}")


def leases(store: Store, image: StoredImage) -> list[str]:
    """Who asked root to keep a packed image of the site's store mounted."""
    try:
        return sorted(os.listdir(f"{store.run}/leases/{image.name}")) if store.site else []
    except FileNotFoundError:
        return []
