# SPDX-License-Identifier: Apache-2.0
"""What tests may need of a machine, and whether this machine has it.

A test declares ``@pytest.mark.needs("root", "strace")``.  Each name stands once in PROBES, with a function
that returns None, or the reason why the need is not met.  Probes try the real thing where that is cheap.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PLAIN_UID = 1001
"""The plain user of tests that run as root; it needs no passwd entry."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def front_path() -> Path:
    """Where the native ``hpcpod`` under test is: $HPCPOD_FRONT, else beside this interpreter."""
    return Path(os.environ.get("HPCPOD_FRONT") or Path(sys.prefix) / "bin" / "hpcpod")


def cosign_path() -> Path | None:
    """Where tests/setup/setup sid has put cosign, which Debian 12 lacks; None where it has not."""
    home = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '/tmp')}/.cache"
    places = [Path("/var/cache/hpcpod/sid"), Path(home) / "hpcpod" / "sid"]
    return next((each for place in places if (each := place / "usr/bin/cosign").is_file()), None)


def drop_words(uid: int) -> list[str]:
    """The words that make a command run as this user, from root."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def _tries(what: str, command: list[str]) -> str | None:
    words = (drop_words(PLAIN_UID) if os.geteuid() == 0 else []) + command
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False, cwd="/"
        )
    except OSError as error:
        return f"{what}: {error}"
    if done.returncode == 0:
        return None
    return f"{what}: {(done.stderr.strip().splitlines() or ['exit status ' + str(done.returncode)])[-1]}"


def _program(*names: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        missing = [name for name in names if shutil.which(name, path=SYSTEM_PATH) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    return probe


def _module(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"python module {name}: not installed"


def _root() -> str | None:
    return None if os.geteuid() == 0 else f"not root (uid {os.geteuid()})"


def _plain() -> str | None:
    return _program("setpriv")() if os.geteuid() == 0 else None


def _userns() -> str | None:
    return _tries(
        "user namespace of a plain user",
        ["unshare", "--user", "--mount", "--map-current-user", "true"],
    )


def _overlay() -> str | None:
    script = (
        "mount -t tmpfs t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m && "
        "mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w,userxattr o /mnt/m"
    )
    return _tries(
        "overlayfs in a user namespace",
        ["unshare", "--user", "--mount", "--map-root-user", "sh", "-c", script],
    )


def _fuse() -> str | None:
    return _program("squashfuse_ll", "mksquashfs")() or _tries(
        "/dev/fuse as a plain user",
        ["unshare", "--user", "--mount", "--map-root-user", "sh", "-c", "exec 3<>/dev/fuse"],
    )


def _kernel_images() -> str | None:
    """Squashfs by a loop device, and EROFS from a plain file (Linux 6.12)."""
    known = Path("/proc/filesystems").read_text(encoding="utf-8").split()
    missing = [name for name in ("squashfs", "erofs") if name not in known]
    if missing:
        return f"file systems that this kernel lacks: {', '.join(missing)}"
    release = tuple(int(number) for number in os.uname().release.split(".")[:2])
    if release < (6, 12):
        return "EROFS without a loop device: Linux 6.12 or later"
    return _program("mksquashfs", "mkfs.erofs")() or (
        None if Path("/dev/loop-control").exists() else "/dev/loop-control: not there"
    )


def control_group() -> Path | None:
    """A hierarchy of control groups by which schedulers end steps and in which root can make groups."""
    places = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer")
    return next((path for path in map(Path, places) if os.access(path / "cgroup.procs", os.W_OK)), None)


def _cgroup() -> str | None:
    return None if control_group() else "no control group that this user can write to"


def _native() -> str | None:
    front = front_path()
    if not front.is_file():
        return f"{front}: not built; make test builds and installs it, HPCPOD_FRONT names another"
    with front.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return f"{front}: not the native program"
    return _tries(f"{front} as a plain user", ["test", "-x", str(front)])


def _cosign() -> str | None:
    return None if cosign_path() else "cosign: not there; as root, tests/setup/setup sid fetches it"


def _slurm() -> str | None:
    from tests.testbed.needs import missing

    return "; ".join(missing()) or None


def _qemu() -> str | None:
    """An emulated machine, which needs no KVM, with this machine's root as its own."""
    from tests.testbed.guest import missing

    return missing()


def _musl() -> str | None:
    return _compiles(["musl-gcc", "-static"])


def _sanitizers() -> str | None:
    return _compiles(["gcc", "-fsanitize=address,undefined"])


def _fuzzer() -> str | None:
    return _compiles(
        ["clang", "-fsanitize=fuzzer,address"],
        "int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }\n",
    )


def _compiles(words: list[str], source: str = "int main(void) { return 0; }\n") -> str | None:
    reason = _program(words[0])()
    if reason:
        return reason
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*words, "-x", "c", "-", "-o", f"{scratch}/program"],
            input=source,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return None
    return f"{' '.join(words)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"


def _loop() -> str | None:
    """A file as a disk, with ext4 on it."""
    return _program("mkfs.ext4", "losetup")() or (
        None if os.path.exists("/dev/loop-control") else "no loop devices: /dev/loop-control is missing"
    )


PROBES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "plain": _plain,  # another, unprivileged user than root can be had
    "userns": _userns,
    "overlay": _overlay,
    "native": _native,
    "uml": _program("linux.uml", "mkfs.ext4"),  # a kernel that runs as a process
    "loop": _loop,
    "fuse": _fuse,
    "cgroup": _cgroup,
    "kernel-images": _kernel_images,
    "slurm": _slurm,
    "qemu": _qemu,
    "musl": _musl,
    "sanitizers": _sanitizers,
    "fuzzer": _fuzzer,
    "gcc": _program("gcc"),
    "clang": _program("clang"),
    "mpich": _program("mpicc.mpich", "mpiexec.hydra"),
    "openmpi": _program("mpicc.openmpi", "mpirun.openmpi"),
    "umoci": _program("umoci"),
    "skopeo": _program("skopeo"),
    "gpg": _program("gpg", "gpgconf"),
    "cosign": _cosign,
    "docker-registry": _program("docker-registry"),
    "registry": _program("docker-registry", "skopeo", "openssl"),
    "erofs-utils": _program("mkfs.erofs"),
    "podman": _program("podman"),
    "squashfs-tools": _program("mksquashfs", "unsquashfs"),
    "mmdebstrap": _program("mmdebstrap"),
    "bsdtar": _program("bsdtar"),
    "veritysetup": _program("veritysetup"),
    "fsverity": _program("fsverity"),
    "zstd": _program("zstd"),
    "strace": _program("strace"),
    "bwrap": _program("bwrap"),
    "crun": _program("crun"),
    "ch-run": _program("ch-run"),
    "git": _program("git"),
    "pyroute2": _module("pyroute2"),
    "numpy": _module("numpy"),
    "atheris": _module("atheris"),
}


@functools.cache
def unmet(name: str) -> str | None:
    """Why this machine does not meet the need, or None.  KeyError for a need that PROBES does not have."""
    return PROBES[name]()
