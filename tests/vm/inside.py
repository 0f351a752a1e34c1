# SPDX-License-Identifier: Apache-2.0
"""What runs in the guest: a site's store and a user's on a disk with fs-verity or without, images that rot.

The functions are called by name from test_verity.py; their arguments and answers are JSON's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

from hpcpod.errors import ImageDigestMismatch
from hpcpod.images.stores import devmapper, fsverity
from tests.testbed import layouts

DISKS = {"plain": "^verity", "verity": "verity"}
"""Features of ext4 by what the disk is called."""
ACCOUNT = 65433


def place(disk: str) -> Path:
    return Path("/run") / disk


def environment(disk: str) -> dict[str, str]:
    return {
        "HPCPOD_CONFIG": f"/run/{disk}.toml",
        "HPCPOD_STORE": f"{place(disk)}/store",
        "HPCPOD_RUNTIME": f"/run/hpcpod-{disk}",
    }


def prepare() -> None:
    """Make the disks, in memory; and an image that everybody may read."""
    for disk, feature in DISKS.items():
        file = f"/run/{disk}.disk"
        subprocess.run(["truncate", "-s", "48M", file], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", feature, file], check=True)
        place(disk).mkdir()
        mount_disk(disk)
        place(disk).chmod(0o777)
        keys = f'store = "{place(disk)}/site"\nrun = "/run/site-{disk}"\naccount = "{ACCOUNT}"\n'
        Path(f"/run/{disk}.toml").write_text(f'[site]\n{keys}[trust]\npolicy = "/run/policy.json"\n')
    Path("/run/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    Path("/run/hpcpod-own").mkdir(0o700)
    os.chown("/run/hpcpod-own", 1001, 1001)
    # data of each block of its own, so that no region is compressed away
    files = b"".join(layouts.file(b"file-%d" % n, os.urandom(100_000)) for n in range(8))
    layouts.write_layout(Path("/run/layout"), layouts.image(layouts.directory(b".") + files))
    subprocess.run(["chmod", "-R", "a+rX", "/run/layout"], check=True)


def mount_disk(disk: str) -> None:
    """Mount it, with nothing of it in memory."""
    subprocess.run(["mount", "-o", "loop", f"/run/{disk}.disk", place(disk)], check=True)


def forget(disk: str) -> None:
    """Have the next reading come from the disk."""
    subprocess.run(["sync", "-f", place(disk)], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def rot(disk: str, file: str, at: int) -> None:
    """Flip a bit of a file on the disk, below its file system, which notices nothing."""
    forget(disk)
    said = subprocess.run(["filefrag", "-v", file], check=True, capture_output=True, text=True).stdout
    block, offset = divmod(at, 4096)
    for line in said.splitlines():
        fields = line.replace("..", " ").replace(":", " ").split()
        if fields and fields[0].isdigit() and int(fields[1]) <= block <= int(fields[2]):
            position = (int(fields[3]) + block - int(fields[1])) * 4096 + offset
            break
    else:
        raise AssertionError(f"byte {at} of {file} is nowhere:\n{said}")
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", place(disk)], check=True, capture_output=True, text=True
    ).stdout.strip()
    fd = os.open(device, os.O_RDWR | os.O_SYNC)
    try:
        (byte,) = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([byte ^ 1]), position)
    finally:
        os.close(fd)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_all(directory: str) -> list[str]:
    """What reading each file below gives: ``good``, or the errno's name."""
    answers = []
    for path in sorted(Path(directory).rglob("*")) or [Path(directory) / "none"]:
        try:
            answers.append("good" if len(path.read_bytes()) == 100_000 else "short")
        except OSError as error:
            answers.append(errno.errorcode[error.errno or 0])
    return answers


def devices() -> list[str]:
    """The device mapper's devices, and loop devices over images."""
    mapped = devmapper._devices()
    loops = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            loops.append(path.read_text().strip())
    return mapped + [file for file in loops if "rootfs." in file]


def measure(file: str) -> str:
    fd = os.open(file, os.O_RDONLY)
    try:
        return fsverity.measure(fd)
    finally:
        os.close(fd)


def write_to(file: str) -> str:
    """What opening it for writing gives."""
    try:
        os.close(os.open(file, os.O_RDWR))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def leave_device(resumed: bool) -> str:
    """A device as a kill leaves it: made, or ready as well; nobody has it open."""
    name = f"{devmapper.PREFIX}left-0123456789abcdef"
    devmapper._command(devmapper._CREATE, name, devmapper._READ_ONLY, uuid="HPCPOD-left")
    if resumed:
        spec = devmapper._SPEC.pack(0, 8, 0, devmapper._SPEC.size + 8, b"error") + bytes(8)
        devmapper._command(devmapper._LOAD, name, devmapper._READ_ONLY, spec)
        devmapper._command(devmapper._SUSPEND, name, devmapper._READ_ONLY)
    return name


def check(file: str) -> int:
    """Check a user's packed file as a start does; how many bytes of files were read for it."""
    from hpcpod.images.stores.intact import check_used

    before = _read_bytes()
    check_used(file, os.path.basename(os.path.dirname(file)), "/dev/shm/compared")
    return _read_bytes() - before


def refusal(file: str) -> str:
    """What a start says to a user's packed file."""
    try:
        check(file)
    except ImageDigestMismatch as error:
        return error.message
    return ""


def _read_bytes() -> int:
    """Bytes that this process has read by system calls (proc(5), io)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].partition(":")[2])
