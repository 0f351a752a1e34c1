# SPDX-License-Identifier: Apache-2.0
"""Who uses an image of a store: processes that have it mounted, and when it was last used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from hpcpod.frozen import frozen
from hpcpod.images.stores.place import DEVICE, ROOT, place_of, plain, within
from hpcpod.images.stores.store import FACTS, PINNED, ROOTFS, Store, StoredImage, content_name
from hpcpod.model import Form, mark_of

_LOOP, _MAPPED = "/dev/loop", "/dev/dm-"


@frozen
class MountLine:
    """A line of a mount table (proc(5), mountinfo): device ``major:minor``, root, type, source and options.

    files: where the source is a loop device or one of dm-verity, the files below it.
    """

    device: str
    root: str
    type: str
    source: str
    options: str
    files: tuple[str, ...] = ()


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
    return len(lines) == 1 and lines[0].type.startswith("fuse.")


def _lines(pid: str) -> Iterator[MountLine]:
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                fields, (kind, source, options, *_) = before.split(" "), map(plain, after.split(" "))
                root, below = plain(fields[ROOT]), _files_below(source)
                yield MountLine(fields[DEVICE], root, kind, source, options, below)
    except OSError:
        return  # ended meanwhile, or another user's


def _files_below(source: str) -> tuple[str, ...]:
    """Paths of the files below a mounted loop device, or below a dm-verity device over some; else none."""
    if not source.startswith((_LOOP, _MAPPED)):
        return ()
    name = os.path.basename(source)
    try:
        below = os.listdir(f"/sys/block/{name}/slaves") if source.startswith(_MAPPED) else [name]
        return tuple(map(_backing_file, sorted(below)))
    except OSError:
        return ()


def _backing_file(loop: str) -> str:
    with open(f"/sys/block/{loop}/loop/backing_file", errors="replace") as file:
        return file.read().removesuffix("\n")


def user_of(store: Store, image: StoredImage, mounted: Mounted, present: str = "") -> int | None:
    """A process that has this entry of this store mounted, or None.

    A pod shows it as the root of a bind mount (a directory), as a mount whose source is the entry's mark
    (overlays and FUSE), or as one of the packed file (the kernel's); overlays of others name the tree among
    their options.  The same image in another store is another entry.  present: where the entry's directory
    is now, if it was moved since it could be mounted; a bind mount shows the new place, an overlay the old.
    """
    form = Form(image.form)
    path = store.path(image.digest, form)
    now = present or path
    try:
        tree, mark = within(now), mark_of(image.digest, place_of(now))
    except OSError:
        return None
    packed = _device_of(store.mount_point(image.digest, form)) if store.site else ""
    contents = {f"{where}/{content_name(form)}" for where in (path, os.path.realpath(path), now)}
    for pid, lines in mounted.tables:
        for line in lines:
            known = line.source == mark or tree == (line.device, _parent_of_tree(line.root))
            if known or (packed and line.device == packed) or _shows(line, contents):
                return pid
    return None


def _shows(line: MountLine, contents: set[str]) -> bool:
    """Whether a mount is made of one of these: of a file, or an overlay of a tree."""
    if contents & {line.source, *line.files}:
        return True
    if line.type != "overlay":
        return False
    return not contents.isdisjoint(re.split(r"[=:,]", line.options))


def is_root_of_pod(path: str) -> bool:
    """Whether a process has mounted the tree of an entry that was moved to path.

    What lies in the garbage may be the account's that unpacks: nothing in it is read.
    """
    try:
        tree, end = within(path), mark_of("", place_of(path))
    except OSError:
        return False
    return any(
        tree == (line.device, _parent_of_tree(line.root))
        or (line.type == "overlay" and line.source.endswith(end))
        for _, lines in read_mounts().tables
        for line in lines
    )


def _parent_of_tree(root: str) -> str:
    """The entry of whose tree this is the root; empty for what is no tree."""
    return root.removesuffix(f"/{ROOTFS}") if root.endswith(f"/{ROOTFS}") else ""


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
