# SPDX-License-Identifier: Apache-2.0
"""Reading what doctor.py judges: settings, directories, and an attempt at a pod's namespaces."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping

from hpcpod.config import runtime_directory, store_directory
from hpcpod.errors import HpcpodError
from hpcpod.images.limits import configured
from hpcpod.images.stores import devmapper, fsverity
from hpcpod.images.stores.site import disk_of
from hpcpod.images.stores.store import is_mounted, open_site
from hpcpod.images.stores.tools import kernel_knows, program, squashfuse
from hpcpod.images.trust.gpg import gpg_program
from hpcpod.launcher.doctor import NodeFacts, Packing, Place, SiteFacts
from hpcpod.model import Form
from hpcpod.settings import Settings, read_settings

SYSCTLS = (
    "user/max_user_namespaces",
    "user/max_mnt_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "kernel/seccomp/actions_avail",
)
SRUN_SECONDS = 10
_PROGRAM_MAX = 64 << 20
"""Bytes of a program that are looked through."""

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_MS_REC_PRIVATE = 0x4000 | 0x40000


def read_sysctls(root: str = "/proc/sys") -> dict[str, str]:
    """The settings that exist here, by path below root."""
    found: dict[str, str] = {}
    for name in SYSCTLS:
        try:
            with open(os.path.join(root, name)) as file:
                found[name] = file.read().strip()
        except OSError:  # a kernel without this setting
            continue
    return found


def _file_system(path: str) -> tuple[str, frozenset[str]]:
    """(type, mount options) of the file system that path is on, from proc(5)'s mountinfo."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best, length = ("", frozenset[str]()), -1
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            fields = before.split()
            where = fields[4].encode("ascii", "surrogateescape").decode("unicode_escape")
            if (
                fields[2] == wanted
                and f"{path}/".startswith(where.rstrip("/") + "/")
                and len(where) >= length
            ):
                best, length = (after.split()[0], frozenset(fields[5].split(","))), len(where)
    return best


def _place(find: Callable[[], str]) -> Place:
    """A directory that hpcpod itself would choose, made if it is not there yet."""
    try:
        path = find()
    except HpcpodError as error:
        return Place("", problem=error.message)
    kind, options = _file_system(os.path.realpath(path))
    space = os.statvfs(path)
    return Place(path, kind=kind, options=options, free=space.f_bavail * space.f_frsize)


# --------------------------------------------------------------------------- images


def has_threads(server: str) -> bool | None:
    """Whether this FUSE server answers several requests at once, by the function of libfuse that it calls."""
    try:
        with open(server, "rb") as file:
            content = file.read(_PROGRAM_MAX)
    except OSError:
        return None
    if b"fuse_session_loop_mt" in content:
        return True
    return False if b"fuse_session_loop" in content else None


def _packing(store: str) -> Packing:
    """store: directory of the user's own, empty where there is none."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        fuse = ""
    except OSError as error:
        fuse = errno.errorcode.get(error.errno or 0, "error")
    server = squashfuse()
    return Packing(
        filesystems=frozenset(filter(kernel_knows, ("erofs", "squashfs"))),
        programs=frozenset(filter(program, ("mkfs.erofs", "mksquashfs", "squashfuse_ll"))),
        threads=has_threads(server) if server else None,
        fuse=fuse,
        dm_verity=devmapper.obstacle(),
        fs_verity=fsverity.offers(store) if store else None,
    )


def _site(settings: Settings) -> SiteFacts | None:
    """None where the site has no store: none is configured, or nobody has made the one that is by default."""
    if not settings.site or (settings.site == Settings().site and not os.path.lexists(settings.site)):
        return None
    run = settings.site_run
    disk = disk_of(_nearest(run))
    store = open_site(settings)
    if store is None:
        there = os.path.lexists(settings.site)
        problem = "not root's alone, or of another version" if there else "not there"
        return SiteFacts(settings.site, problem, run=run, disk=disk)
    images = store.all()
    mounted = sum(is_mounted(store.mount_point(image.digest, Form(image.form))) for image in images)
    return SiteFacts(settings.site, "", len(images), mounted, run, disk)


def _nearest(path: str) -> str:
    """The directory that is there already, of path and those above it."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


# --------------------------------------------------------------------------- namespaces


def _system_call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _namespaces(uid: int, gid: int) -> None:
    """What a pod begins with: user, mount and IPC namespaces, the user mapped to itself."""
    _system_call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWIPC)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _system_call("mount", None, b"/", None, _MS_REC_PRIVATE, None)
    _system_call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)


def _overlay() -> None:
    """What --writable needs: an overlay with its upper layer in memory."""
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"/tmp/{name}")
    options = b"lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"
    _system_call("mount", b"overlay", b"/tmp/merged", b"overlay", 0, options)


def _attempt() -> tuple[str, str]:
    """Errno names of the two attempts, made in a child; empty for success."""
    reading, writing = os.pipe()
    uid, gid = os.getuid(), os.getgid()
    child = os.fork()
    if child == 0:
        done: list[int] = []
        try:
            _namespaces(uid, gid)
            done.append(0)
            _overlay()
            done.append(0)
        except OSError as error:
            done.append(error.errno or errno.EIO)
        finally:
            os.write(writing, bytes(done))
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        codes = file.read()
    os.waitpid(child, 0)
    names = [errno.errorcode.get(code, str(code)) if code else "" for code in codes]
    return (names[0] if names else "EIO"), (names[1] if len(names) > 1 else "")


# --------------------------------------------------------------------------- Slurm


def parse_mpi_list(text: str) -> frozenset[str]:
    """Plugin names of ``srun --mpi=list``: lines of one word; older versions write ``srun: `` first."""
    words = (line.removeprefix("srun: ").strip() for line in text.splitlines())
    return frozenset(word for word in words if word.replace("_", "").isalnum())


def _pmi() -> tuple[frozenset[str] | None, str]:
    if shutil.which("srun") is None:
        return None, ""
    try:
        done = subprocess.run(
            ["srun", "--mpi=list"], capture_output=True, text=True, timeout=SRUN_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    # Slurm prints the list on stderr before 22.05, on stdout since.
    text = done.stdout if done.stdout.strip() else done.stderr
    if done.returncode != 0:
        return None, next(iter(text.strip().splitlines()), f"exit status {done.returncode}")
    return parse_mpi_list(text), ""


def read_node(environment: Mapping[str, str], uid: int) -> NodeFacts:
    """Read all of it; takes some 50 ms, longer where srun has to ask."""
    userns, overlay = _attempt()
    pmi, pmi_problem = _pmi()
    settings, settings_problem = Settings(), ""
    try:
        settings = read_settings(environment)
        configured(settings)
    except HpcpodError as error:
        settings_problem = error.message
    store = _place(lambda: store_directory(environment, uid))
    return NodeFacts(
        release=os.uname().release,
        sysctl=read_sysctls(),
        userns=userns,
        overlay=overlay,
        store=store,
        runtime=_place(lambda: runtime_directory(environment, uid)),
        pmi=pmi,
        pmi_problem=pmi_problem,
        packing=_packing(store.path),
        site=_site(settings),
        settings_problem=settings_problem,
        gpg=bool(gpg_program()),
    )
