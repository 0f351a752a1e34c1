# SPDX-License-Identifier: Apache-2.0
"""Who unpacks: hpcpod, umoci, podman, GNU tar; each one's command, and one run of it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.account import Account, BenchError, last_line
from bench.startup.contenders import tool
from bench.unpack.images import Image
from bench.unpack.layout import layers, split

VERIFIED = "every digest and size checked, safe paths"
PRIVATE = 'mount -t tmpfs none /var/lib && exec "$@"'
"""podman keeps a cache in /var/lib/containers whatever its --root, and wants a short --runroot."""


@dataclass(frozen=True)
class Unpacker:
    """One contender.  words: {} in them stands for the target.  once: too slow for more than one run."""

    key: str
    name: str
    about: str
    words: Sequence[str]
    as_root: bool = False
    once: bool = False

    def command(self, target: Path) -> list[str]:
        """The words for one target."""
        return [word.replace("{}", str(target)) for word in self.words]


@dataclass(frozen=True)
class Sample:
    """One unpacking: µs, µs, KiB of the largest process.  flushed: µs until the tree was on the disk, too."""

    wall: int
    cpu: int
    peak: int
    flushed: int


def unpackers(image: Image, front: Path | None) -> list[Unpacker]:
    """Who takes part; those that need root only as root.  Raises BenchError."""
    found = [] if front is None else [_hpcpod(image, front, packing) for packing in image.references]
    gzip = image.references["gzip"]
    layout, tag = split(gzip)
    umoci = [tool("umoci"), "unpack", "--image", f"{layout}:{tag}"]
    if os.geteuid() == 0:
        about = "digests checked, mtree manifest written"
        found.append(
            Unpacker("umoci-gzip", "umoci unpack as root, gzip", about, [*umoci, "{}"], as_root=True)
        )
        found += [_podman(image, packing) for packing in image.references]
    if os.geteuid() != 0 or image.name == "demo":
        about = "as a plain user has it; it walks along each path anew"
        words = [*umoci[:2], "--rootless", *umoci[2:], "{}"]
        found.append(
            Unpacker("umoci-rootless-gzip", "umoci unpack --rootless, gzip", about, words, once=True)
        )
    return [*found, _tar(gzip)]


def _hpcpod(image: Image, front: Path, packing: str) -> Unpacker:
    words = [str(front), "image", "unpack", image.references[packing], "{}"]
    return Unpacker(f"hpcpod-{packing}", f"hpcpod image unpack, {packing}", VERIFIED, words)


def _podman(image: Image, packing: str) -> Unpacker:
    """podman load of the layout, as root, into a store below the target."""
    run = ["--runroot", "/var/lib/run", "--tmpdir", "/var/lib/tmp"]
    own = ["--root", "{}", *run, "--storage-driver", "overlay"]
    load = [tool("podman"), *own, "load", "--quiet", "--input", str(split(image.references[packing])[0])]
    words = [tool("unshare"), "--mount", "/bin/sh", "-c", PRIVATE, "sh", *load]
    about = "as root, into an overlay store of its own; digests checked, tar-split data written"
    return Unpacker(f"podman-{packing}", f"podman load, {packing}", about, words, as_root=True)


def _tar(reference: str) -> Unpacker:
    files = " ".join(map(str, layers(reference)))
    # A plain user makes no devices; the zeros, because umoci writes layers whose last entry is not padded.
    extract = "tar -x -C {} --exclude='dev/*' --exclude='./dev/*'"
    unpadded = "{ gzip -dc $layer; head -c 10240 /dev/zero; }"
    words = f"mkdir {{}} && for layer in {files}; do {unpadded} | {extract} || exit; done"
    return Unpacker(
        "tar-gzip", "gzip -dc and GNU tar", "nothing verified, no whiteouts", ["/bin/sh", "-c", words]
    )


def once(account: Account, unpacker: Unpacker, target: Path) -> Sample:
    """Unpack once.  Raises BenchError if that fails."""
    become = os.geteuid() == 0 and not unpacker.as_root
    with tempfile.TemporaryFile("w+") as said:
        start = time.monotonic_ns()
        process = subprocess.Popen(
            unpacker.command(target),
            env=dict(account.environment),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            user=account.uid if become else None,
            group=account.gid if become else None,
            extra_groups=[] if become else None,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic_ns() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            said.seek(0)
            raise BenchError(f"{unpacker.name}: status {process.returncode}: {last_line(said.read())}")
    start = time.monotonic_ns()
    os.sync()
    flushed = wall + time.monotonic_ns() - start
    return Sample(wall // 1000, round((used.ru_utime + used.ru_stime) * 1e6), used.ru_maxrss, flushed // 1000)
