# SPDX-License-Identifier: Apache-2.0
"""Whether this node can hold pods: facts in, findings out.  Pure; node_facts.py reads the facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from hpcpod.frozen import frozen
from hpcpod.log import counted, shown
from hpcpod.log import size as shown_size

BASELINE = (5, 14)
"""Linux of RHEL 9, the oldest that is tested."""
MIN_FREE = 5 << 30
"""Bytes: an image of a usual size, unpacked."""
SHARED_TYPES = frozenset(
    ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "panfs", "cifs", "smb3", "afs", "9p", "fuse.sshfs")
)


class Level(Enum):
    """ok: nothing to do; warn: pods run, with something lost; fail: they do not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@frozen
class Finding:
    """One thing looked at.  mend: the command or setting that mends it, empty where there is none to name."""

    subject: str
    level: Level
    message: str
    mend: str = ""


@frozen
class Place:
    """A directory that hpcpod uses.  problem: why it cannot be used, or empty; free: bytes."""

    path: str
    problem: str = ""
    kind: str = ""
    options: frozenset[str] = frozenset()
    free: int = 0


@frozen
class Packing:
    """What the node has for packed images.

    filesystems: those of ``erofs`` and ``squashfs`` that the kernel has.  programs: those of mkfs.erofs,
    mksquashfs and squashfuse_ll that are installed.  threads: whether squashfuse_ll has several, None for not
    known.  fuse: errno name of opening /dev/fuse, empty for success.  dm_verity: why root cannot have
    dm-verity devices, empty where it can.  fs_verity: whether the user's store has fs-verity, None for not
    known.
    """

    filesystems: frozenset[str] = frozenset()
    programs: frozenset[str] = frozenset()
    threads: bool | None = None
    fuse: str = ""
    dm_verity: str = ""
    fs_verity: bool | None = None


@frozen
class SiteFacts:
    """The site's store.  problem: why users cannot use it, or empty.  mounted: images that are, for all.

    run: its run-time directory; disk: the type of the file system that it is on, empty for memory.
    """

    path: str
    problem: str = ""
    images: int = 0
    mounted: int = 0
    run: str = ""
    disk: str = ""


@frozen
class NodeFacts:
    """What was read of the node.

    sysctl: values by path below /proc/sys, without those that are absent.  userns, overlay: errno name of the
    attempt to make a pod's namespaces and a writable layer in them, empty for success.  pmi: what
    ``srun --mpi=list`` offers, None where there is no srun; pmi_problem: why it could not be asked.
    site: None where the site has no store; settings_problem: what is wrong with hpcpod.toml, or empty.
    gpg: whether the program is there that checks OpenPGP signatures.
    """

    release: str
    sysctl: Mapping[str, str]
    userns: str
    overlay: str
    store: Place
    runtime: Place
    pmi: frozenset[str] | None = None
    pmi_problem: str = ""
    packing: Packing = Packing()
    site: SiteFacts | None = None
    settings_problem: str = ""
    gpg: bool = True


def findings(facts: NodeFacts) -> tuple[Finding, ...]:
    """Everything that was looked at, in the order in which a start needs it."""
    return (
        _kernel(facts.release),
        _user_namespaces(facts),
        _overlay(facts),
        _seccomp(facts.sysctl),
        _runtime(facts.runtime),
        _store(facts.store),
        *_site(facts),
        *_packed(facts.packing),
        _gpg(facts),
        *_slurm(facts),
    )


def _kernel(release: str) -> Finding:
    numbers = release.split("-", maxsplit=1)[0].split(".")
    if len(numbers) < 2 or not all(part.isdigit() for part in numbers[:2]):
        return Finding("kernel", Level.WARN, f"release {shown(release)} tells no version")
    version = (int(numbers[0]), int(numbers[1]))
    if version < BASELINE:
        least = ".".join(map(str, BASELINE))
        return Finding(
            "kernel", Level.FAIL, f"Linux {shown(release)}, {least} or later is needed", "update the kernel"
        )
    return Finding("kernel", Level.OK, f"Linux {shown(release)}")


def _why_no_user_namespaces(sysctl: Mapping[str, str]) -> tuple[str, str]:
    """(reason, what mends it), from the settings that are known to forbid them."""
    if sysctl.get("user/max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=65536"
    if sysctl.get("kernel/unprivileged_userns_clone") == "0":
        return "kernel.unprivileged_userns_clone is 0", "sysctl -w kernel.unprivileged_userns_clone=1"
    if sysctl.get("kernel/apparmor_restrict_unprivileged_userns", "0") != "0":
        name = "kernel.apparmor_restrict_unprivileged_userns"
        return f"{name} is set", f"give hpcpod an AppArmor profile with `userns,`, or sysctl -w {name}=0"
    if sysctl.get("user/max_mnt_namespaces") == "0":
        return "user.max_mnt_namespaces is 0", "sysctl -w user.max_mnt_namespaces=65536"
    return "a security module or a container around us forbids them", "ask who runs this node"


def _user_namespaces(facts: NodeFacts) -> Finding:
    if not facts.userns:
        return Finding("user namespaces", Level.OK, "open to this user")
    reason, mend = _why_no_user_namespaces(facts.sysctl)
    return Finding("user namespaces", Level.FAIL, f"cannot be made ({facts.userns}): {reason}", mend)


def _overlay(facts: NodeFacts) -> Finding:
    if facts.userns:
        return Finding("overlay", Level.WARN, "not tried without user namespaces")
    if not facts.overlay:
        return Finding("overlay", Level.OK, "works in a user namespace")
    lost = "no --writable, and mount points must exist in the image"
    return Finding("overlay", Level.WARN, f"cannot be mounted ({facts.overlay}): {lost}", "modprobe overlay")


def _seccomp(sysctl: Mapping[str, str]) -> Finding:
    actions = sysctl.get("kernel/seccomp/actions_avail", "").split()
    if "errno" in actions and "kill_process" in actions:
        return Finding("seccomp", Level.OK, "filters are available")
    mend = "hpcpod run --seccomp=none, or a kernel with CONFIG_SECCOMP_FILTER"
    return Finding("seccomp", Level.FAIL, "the kernel has no system call filters", mend)


def _runtime(place: Place) -> Finding:
    where = shown(place.path)
    if place.problem:
        return Finding("run-time directory", Level.FAIL, shown(place.problem), "set HPCPOD_RUNTIME")
    if place.kind not in ("tmpfs", "ramfs"):
        message = f"{where} is on {shown(place.kind or 'an unknown file system')}, not in memory"
        return Finding(
            "run-time directory", Level.WARN, message, "set HPCPOD_RUNTIME to a directory on tmpfs"
        )
    return Finding("run-time directory", Level.OK, f"{where} ({place.kind})")


def _store(place: Place) -> Finding:
    where, elsewhere = shown(place.path), "set HPCPOD_STORE to a directory on a disk of this node"
    if place.problem:
        return Finding("image store", Level.FAIL, shown(place.problem), elsewhere)
    if "noexec" in place.options:
        return Finding(
            "image store", Level.FAIL, f"{where} is mounted noexec: no program would start", elsewhere
        )
    if place.kind in SHARED_TYPES:
        return Finding(
            "image store", Level.WARN, f"{where} is on {place.kind}, shared with other nodes", elsewhere
        )
    free = f"{shown_size(place.free)} free"
    if place.free < MIN_FREE:
        return Finding("image store", Level.WARN, f"{where}: only {free}", "hpcpod image rm, or " + elsewhere)
    return Finding("image store", Level.OK, f"{where} ({shown(place.kind)}, {free})")


def _site(facts: NodeFacts) -> Iterator[Finding]:
    if facts.settings_problem:
        yield Finding(
            "hpcpod.toml", Level.FAIL, shown(facts.settings_problem), "mend the file (hpcpod.toml(5))"
        )
    if facts.site is None:
        return
    where = shown(facts.site.path)
    if facts.site.problem:
        message = f"{where}: {shown(facts.site.problem)}: users' own stores are used"
        yield Finding("site store", Level.WARN, message, "hpcpod image pull --site REF, as root")
    else:
        message = f"{where} ({counted(facts.site.images, 'image')}, {facts.site.mounted} mounted)"
        yield Finding("site store", Level.OK, message)
    if facts.site.disk:
        message = f"{shown(facts.site.run)} is on {shown(facts.site.disk)}, not in memory: root cannot use it"
        mend = "set [site] run in hpcpod.toml to a directory on tmpfs"
        yield Finding("site run-time directory", Level.FAIL, message, mend)


def _packed(packing: Packing) -> Iterator[Finding]:
    """Nothing here keeps a pod from starting: an image can always be a directory."""
    for form, maker, package in (
        ("erofs", "mkfs.erofs", "erofs-utils"),
        ("squashfs", "mksquashfs", "squashfs-tools"),
    ):
        if form not in packing.filesystems:
            message = f"this kernel has no {form}: root cannot mount such images for all"
            yield Finding(form, Level.WARN, message, f"a kernel with {form}, or modprobe {form}")
        elif maker not in packing.programs:
            yield Finding(
                form, Level.WARN, f"{maker} is not installed: no image is packed", f"install {package}"
            )
        else:
            yield Finding(form, Level.OK, f"the kernel has it, {maker} packs it")
    yield _fuse(packing)
    yield from _verity(packing)


def _verity(packing: Packing) -> Iterator[Finding]:
    """Without, packed images are compared before their first use since the boot, which reads them once."""
    lost = "images that root mounts are compared once a boot instead"
    if packing.dm_verity:
        mend = "modprobe dm-verity, or a kernel that has it"
        yield Finding("dm-verity", Level.WARN, f"{packing.dm_verity}: {lost}", mend)
    else:
        yield Finding("dm-verity", Level.OK, "images that root mounts are checked whenever they are read")
    if packing.fs_verity:
        message = "your image store's file system has it: packed images are checked whenever they are read"
        yield Finding("fs-verity", Level.OK, message)
    elif packing.fs_verity is False:
        message = "your image store has no fs-verity: packed images in it are compared once a boot instead"
        yield Finding(
            "fs-verity", Level.WARN, message, "tune2fs -O verity DEVICE (ext4), or a store on btrfs"
        )


def _fuse(packing: Packing) -> Finding:
    lost = "a user's squashfs images cannot be shown"
    if packing.fuse:
        return Finding(
            "FUSE", Level.WARN, f"/dev/fuse: {packing.fuse}: {lost}", "modprobe fuse, chmod 0666 /dev/fuse"
        )
    if "squashfuse_ll" not in packing.programs:
        return Finding("FUSE", Level.WARN, f"squashfuse_ll is not installed: {lost}", "install squashfuse")
    if packing.threads is False:
        message = "squashfuse_ll has one thread: ranks that read at once wait for one another"
        return Finding("FUSE", Level.WARN, message, "a squashfuse built with --enable-multithreading")
    several = ", with several threads" if packing.threads else ""
    return Finding("FUSE", Level.OK, f"squashfuse_ll shows users' squashfs images{several}")


def _gpg(facts: NodeFacts) -> Finding:
    if facts.gpg:
        return Finding("signatures", Level.OK, "gpg is there for those of OpenPGP, cosign's need no program")
    lost = "an image that a policy wants signed by OpenPGP is refused; cosign's signatures need no program"
    return Finding("signatures", Level.WARN, f"gpg is not installed: {lost}", "install gnupg")


def _slurm(facts: NodeFacts) -> Iterator[Finding]:
    if facts.pmi_problem:
        why = f"no cluster answers ({shown(facts.pmi_problem)}); not needed for runs without Slurm"
        yield Finding("Slurm", Level.WARN, why)
    elif facts.pmi is not None:
        for kind, family in (("pmi2", "MPICH"), ("pmix", "Open MPI")):
            if any(name == kind or name.startswith(f"{kind}_") for name in facts.pmi):
                loads = ", if its plugin finds libpmix (a start shows that)" if kind == "pmix" else ""
                yield Finding("Slurm", Level.OK, f"lists {kind}, for images with {family}{loads}")
            else:
                mend = f"install Slurm's mpi/{kind} plugin"
                yield Finding(
                    "Slurm", Level.WARN, f"lists no {kind}: images with {family} run on one node only", mend
                )
