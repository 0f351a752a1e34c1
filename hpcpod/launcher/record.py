# SPDX-License-Identifier: Apache-2.0
"""The sealed record: a plan as the words that the native executor reads (native/record.c).  Pure.

NUL-terminated words: ``hpcpod-record``, the version, operations with a fixed number of words each, ``end``.
No quoting and no nesting, so that the C that reads it has nothing to get wrong; a word with a NUL in it
cannot be written down and is refused here.
"""

from __future__ import annotations

from hpcpod.errors import ImageInvalid
from hpcpod.model import (
    Bind,
    BindFromEnv,
    EnvDefault,
    EnvKeep,
    EnvOp,
    EnvSet,
    EnvUnset,
    FileStamp,
    FuseImage,
    GeneratedFile,
    Mount,
    NodePlan,
    RankPlan,
    Rootfs,
    Shield,
    Tmpfs,
    Tree,
    mark_of,
)

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Never, NoReturn

VERSION = "1"

Words = list[str]


def _assert_never(operation: Never) -> NoReturn:
    """As typing.assert_never: mypy proves that no kind of operation arrives here."""
    raise AssertionError(f"no words for {operation!r}")


def _mount(mount: Mount) -> Words:
    match mount:
        case Bind():
            flags = ",".join(
                flag for flag, on in (("ro", mount.read_only), ("optional", mount.optional)) if on
            )
            return ["bind", mount.source, mount.target, flags]
        case BindFromEnv():
            return ["bind-env", mount.variable]
        case Tmpfs():
            return ["tmpfs", mount.target, f"{mount.mode:04o}", str(mount.size)]
        case Shield():
            return ["shield", mount.target, "whole" if mount.whole else "below"]
        case GeneratedFile():
            return ["file", mount.target, mount.content]
        case _:
            _assert_never(mount)


def _env(op: EnvOp) -> Words:
    match op:
        case EnvSet():
            return ["env-set", op.name, op.value]
        case EnvDefault():
            return ["env-default", op.name, op.value]
        case EnvUnset():
            return ["env-unset", op.pattern]
        case EnvKeep():
            return ["env-keep", op.name]
        case _:
            _assert_never(op)


def _guard(stamp: FileStamp) -> Words:
    numbers = (stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns, stamp.ctime_ns)
    return ["guard", stamp.path, *map(str, numbers)]


def _rank(rank: RankPlan) -> Words:
    words: Words = []
    for op in rank.environment:
        words += _env(op)
    for name, values in (("workdir", rank.workdirs), ("command", rank.command), ("launch", rank.launch)):
        for value in values:
            words += [name, value]
    if rank.seccomp:
        words += ["seccomp", rank.seccomp.hex()]
    if rank.accepted is not None:
        words += ["pmi-check", rank.mpi]
        for kind in sorted(kind.value for kind in rank.accepted):
            words += ["pmi-accept", kind]
    if rank.preserve_fds:
        words += ["keep-fds", str(rank.preserve_fds)]
    return words


def rootfs_path(rootfs: Rootfs) -> str:
    """The file or directory whose identity the record holds."""
    match rootfs:
        case Tree():
            return rootfs.path
        case FuseImage():
            return rootfs.file
        case _:
            _assert_never(rootfs)


def _root(rootfs: Rootfs, stamp: FileStamp) -> Words:
    identity = [stamp.path, str(stamp.dev), str(stamp.ino)]
    match rootfs:
        case Tree():
            return ["rootfs", *identity]
        case FuseImage():
            return ["fuse", *identity, rootfs.name, rootfs.server]
        case _:
            _assert_never(rootfs)


def record_bytes(plan: NodePlan, rootfs: FileStamp) -> bytes:
    """The record of this plan.  rootfs: stamp of what rootfs_path() names.

    Raises ImageInvalid when a word holds a NUL (only an image's configuration could bring one).
    """
    image = plan.image
    words: Words = ["hpcpod-record", VERSION, "reference", image.reference]
    words += ["digest", mark_of(image.digest, image.place)]
    for stamp in plan.guards:
        words += _guard(stamp)
    words += _root(plan.pod.rootfs, rootfs)
    if plan.until:
        words += ["until", str(plan.until * 10**9)]
    if plan.fresh_ns:
        words += ["fresh", str(plan.fresh_ns)]
    if plan.pod.writable is not None:
        words += ["writable", str(plan.pod.writable)]
    for mount in plan.pod.mounts:
        words += _mount(mount)
    words += [*_rank(plan.rank), "end"]
    for word in words:
        if "\0" in word:
            raise ImageInvalid(f"image {plan.image.reference}: a NUL character in its configuration")
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
