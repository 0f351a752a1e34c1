# SPDX-License-Identifier: Apache-2.0
"""What of the node is seen in the pod: fixed mounts, home, the current directory, the user's binds.  Pure.

The defaults are those that users of Apptainer know: home, the current directory, /tmp and /var/tmp are the
node's; the rest is the image's.  /dev, /proc and /sys are the node's too, because fabrics, GPUs and debuggers
need them and a rootless process can do no more with them inside than outside (SECURITY.md).
"""

from __future__ import annotations

from posixpath import normpath

from hpcpod.errors import UsageError
from hpcpod.model import Bind, BindFromEnv, Mount, Shield, Tmpfs

_KERNEL_AND_CODE = (
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "proc",
    "sbin",
    "sys",
    "usr",
)
_NEVER_WHOLE = ("", "home", "mnt", "opt", "run", "srv", "tmp", "var")

_OPTIONS = frozenset({"ro", "rw", "optional"})


def _clean(path: str) -> str:
    """The absolute path without ``.``, ``..`` and needless slashes; normpath keeps two in front."""
    return "/" + normpath(path).lstrip("/")


def parse_bind(word: str, cwd: str) -> Bind:
    """``SRC[:DST[:OPTS]]`` as Apptainer and Podman write it; SRC relative to cwd.  Raises UsageError."""
    parts = word.split(":")
    if not 1 <= len(parts) <= 3 or not parts[0]:
        raise UsageError(f"option --bind {word}: not of the form SRC[:DST[:OPTS]]")
    source = _clean(f"{cwd}/{parts[0]}" if not parts[0].startswith("/") else parts[0])
    target = parts[1] if len(parts) > 1 and parts[1] else source
    if not target.startswith("/"):
        raise UsageError(f"option --bind {word}: the target {target} is not an absolute path")
    target = _clean(target)
    if target == "/":
        raise UsageError(f"option --bind {word}: the pod's root cannot be a target")
    options = set(parts[2].split(",")) if len(parts) == 3 else set()
    if options - _OPTIONS or {"ro", "rw"} <= options:
        raise UsageError(f"option --bind {word}: options {parts[2]}", hint="any of: ro or rw, optional")
    return Bind(source, target, read_only="ro" in options, optional="optional" in options)


def shadows_image(path: str) -> bool:
    """Whether this directory of the node, bound at its own path, would hide files of the image."""
    parts = path.strip("/").split("/")
    return parts[0] in _KERNEL_AND_CODE or (len(parts) == 1 and parts[0] in _NEVER_WHOLE)


def _covered(path: str, mounts: list[Mount]) -> bool:
    """Whether a bind of the list already shows this path of the node at its own place."""
    return any(
        isinstance(mount, Bind)
        and mount.source == mount.target
        and (path == mount.target or path.startswith(mount.target.rstrip("/") + "/"))
        for mount in mounts
    )


def fixed_mounts(shm_size: int) -> list[Mount]:
    """The mounts that every pod has, in order."""
    return [
        Bind("/dev", "/dev"),
        Bind("/proc", "/proc"),
        Bind("/sys", "/sys", read_only=True),
        # Its own, so that nothing of a job stays in the node's memory; all ranks of the node share it.
        Tmpfs("/dev/shm", 0o1777, shm_size),
        Bind("/tmp", "/tmp", optional=True),
        Bind("/var/tmp", "/var/tmp", optional=True),
        Bind("/etc/hosts", "/etc/hosts", read_only=True, optional=True),
        Bind("/etc/resolv.conf", "/etc/resolv.conf", read_only=True, optional=True),
    ]


def user_mounts(home: str | None, cwd: str, binds: tuple[str, ...]) -> list[Mount]:
    """Home, current directory and the binds asked for.  home: None when not wanted or not there."""
    mounts: list[Mount] = []
    asked = [parse_bind(word, cwd) for word in binds]
    temporary: list[Mount] = [Bind("/tmp", "/tmp"), Bind("/var/tmp", "/var/tmp")]
    for directory in (_clean(home) if home else None, cwd):
        if directory and not shadows_image(directory) and not _covered(directory, temporary + mounts):
            mounts.append(Bind(directory, directory, optional=True))
    return [*mounts, *asked]


def shields() -> list[Mount]:
    """The places of the image that a directory named by a variable must not hide; as shadows_image says."""
    seen_anyway = {"dev", "proc", "sys", ""}
    code = [Shield(f"/{name}", whole=False) for name in _KERNEL_AND_CODE if name not in seen_anyway]
    return [*code, *(Shield(f"/{name}", whole=True) for name in _NEVER_WHOLE if name not in seen_anyway)]


def step_mounts(pmix: str | None) -> list[Mount]:
    """What changes from step to step: the PMIx server's folder, its clients' folders, the job's TMPDIR.

    pmix: the directory of the clients' folders; without it Open MPI dies when it makes its own there.
    """
    seen = pmix is None or any(f"{pmix}/".startswith(f"{path}/") for path in ("/tmp", "/var/tmp"))
    clients: list[Mount] = [] if pmix is None or seen else [Bind(pmix, pmix, optional=True)]
    return [BindFromEnv("PMIX_SERVER_TMPDIR"), *clients, BindFromEnv("TMPDIR")]
