# SPDX-License-Identifier: Apache-2.0
"""A sealed record with every operation, written by the same code that writes the real ones."""

from __future__ import annotations

import os

from hpcpod.frozen import replace
from hpcpod.launcher.record import record_bytes
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
    ImageConfig,
    NodePlan,
    Platform,
    PmiKind,
    PodPlan,
    RankPlan,
    Shield,
    Tmpfs,
    Tree,
    VerifiedImage,
)


def stamp(path: str) -> FileStamp:
    s = os.stat(path)
    return FileStamp(path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


PLAN = NodePlan(
    image=VerifiedImage(
        "oci:/images/x:latest", "sha256:" + "0" * 64, Tree("/"), Platform("linux", "amd64"), ImageConfig()
    ),
    guards=(stamp("/"), stamp("/proc/self/exe")),
    pod=PodPlan(
        rootfs=Tree("/"),
        writable=1 << 20,
        mounts=(
            Bind("/dev", "/dev"),
            Bind("/data", "/data", read_only=True, optional=True),
            BindFromEnv("PMIX_SERVER_TMPDIR"),
            Tmpfs("/dev/shm", 0o1777, 0),
            Shield("/usr", whole=False),
            GeneratedFile("/etc/passwd", "a:x:1:1::/:/bin/sh\n"),
        ),
    ),
    rank=RankPlan(
        environment=(EnvKeep("KEPT"), EnvUnset("LD_*"), EnvSet("PATH", "/bin"), EnvDefault("HOME", "/")),
        workdirs=(".", "/"),
        command=("sh", "-c", "true"),
        launch=("mpiexec", "-n", "2"),
        seccomp=bytes(range(16)),
        accepted=frozenset({PmiKind.PMI2, PmiKind.PMIX}),
        preserve_fds=3,
        mpi="auto",
    ),
    until=1 << 32,
    fresh_ns=1 << 62,
)

FULL = record_bytes(PLAN, stamp("/"))

_PACKED = FuseImage("/proc/self/exe", "sha256-0.squashfs", "/usr/bin/squashfuse_ll")
FUSE = record_bytes(replace(PLAN, pod=replace(PLAN.pod, rootfs=_PACKED)), stamp("/proc/self/exe"))
"""The same with the image as a packed file."""


def with_environment(*ops: EnvOp) -> bytes:
    """The record of a plan with these operations alone on the environment."""
    return record_bytes(replace(PLAN, rank=replace(PLAN.rank, environment=ops)), stamp("/"))


def words(*items: str) -> bytes:
    """A record of these words."""
    return b"".join(os.fsencode(item) + b"\0" for item in items)
