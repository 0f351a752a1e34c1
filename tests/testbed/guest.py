# SPDX-License-Identifier: Apache-2.0
"""A virtual machine with Debian's own kernel on this machine's own files, which tests run commands in.

Emulated (no KVM is needed), pure cgroup v2 with all controllers.  Its root is an overlay: this machine's
root, read-only by virtiofs, below a layer in the guest's memory.  Modules are loaded by the kernel itself, as
on any node.  The kernel comes from a package that is unpacked, not installed (``tests/setup/setup kernel``).

Commands go to tests/testbed/guest_agent.py over the second serial line, an object of JSON a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testbed.cpio import archive

ROOT = Path(__file__).resolve().parent.parent.parent
QEMU, VIRTIOFSD, BUSYBOX = "qemu-system-x86_64", "/usr/lib/qemu/virtiofsd", "/bin/busybox"
BOOT_SECONDS, MEGABYTES = 120, 1024
_MODULES = ("virtio_pci", "virtiofs", "overlay")
"""Those that the root needs, before any others can be found."""
_INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
for m in $($B cat /order); do $B insmod /mod/$m || echo "guest: no module $m"; done
$B mount -t virtiofs hostroot /lower -o ro || $B poweroff -f
$B mount -t tmpfs t /rw; $B mkdir /rw/u /rw/w
$B mount -t overlay o -o lowerdir=/lower,upperdir=/rw/u,workdir=/rw/w /newroot || $B poweroff -f
for d in proc sys dev; do $B mount --move /$d /newroot/$d; done
$B mount -t cgroup2 c /newroot/sys/fs/cgroup
$B mkdir -p /newroot/dev/shm /newroot/dev/pts /newroot/lib/modules
$B mount -t devpts p /newroot/dev/pts
for d in run dev/shm tmp; do $B mount -t tmpfs t /newroot/$d; done
$B mount -o bind /newroot@modules@ /newroot/lib/modules
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root
export PYTHONPATH=@path@ PYTHONDONTWRITEBYTECODE=1
exec $B switch_root /newroot @python@ -P -m tests.testbed.guest_agent
"""


def kernel_directory() -> Path | None:
    """Where the newest unpacked kernel package is, or None."""
    base = Path(
        "/var/cache" if os.geteuid() == 0 else os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    )
    found = sorted(
        (base / "hpcpod" / "kernel").glob("*/boot/vmlinuz-*"), key=lambda path: path.stat().st_mtime
    )
    return found[-1].parent.parent if found else None


def missing() -> str | None:
    """Why no guest can be started here, or None."""
    if os.uname().machine != "x86_64":
        return f"{os.uname().machine}: the guest is x86_64"
    programs = (QEMU, VIRTIOFSD, BUSYBOX, "depmod")
    absent = [name for name in programs if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if kernel_directory() else "no kernel: tests/setup/setup kernel unpacks one"


def _modules(kernel: Path, release: str) -> dict[str, bytes]:
    """Files of the modules that the root needs, in the order in which they are loaded."""
    tree = kernel / "lib" / "modules" / release
    needs: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, below = line.partition(":")
        needs[path] = below.split()
    order: dict[str, bytes] = {}

    def add(path: str) -> None:
        for other in reversed(needs[path]):
            if other.rpartition("/")[2] not in order:
                add(other)
        order[path.rpartition("/")[2]] = (tree / path).read_bytes()

    for name in _MODULES:
        add(next(path for path in needs if path.endswith(f"/{name}.ko")))
    return order


def _initramfs(kernel: Path, release: str) -> bytes:
    modules = _modules(kernel, release)
    init = _INIT.replace("@modules@", str(kernel / "lib" / "modules"))
    init = init.replace("@path@", str(ROOT)).replace("@python@", sys.executable)
    files: dict[str, tuple[int, bytes]] = {
        "bin/busybox": (0o755, Path(BUSYBOX).read_bytes()),
        "init": (0o755, init.encode()),
        "order": (0o644, "\n".join(modules).encode()),
        **{f"mod/{name}": (0o644, content) for name, content in modules.items()},
    }
    return archive(("bin", "dev", "lower", "mod", "newroot", "proc", "rw", "sys"), files)


@dataclass(frozen=True)
class Done:
    """How a command in the guest ended."""

    argv: object
    returncode: int
    stdout: str
    stderr: str


class Guest:
    """A running guest.  log: what its kernel and its agent said."""

    def __init__(self, line: socket.socket, log: Path) -> None:
        self._line = line
        self._rest = b""
        self.log = log

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout: float = 60,
        **more: Any,
    ) -> Done:
        """Run a command in it to its end.  env: variables to add; uid: as whom.  check: it must succeed."""
        return self._ask({"argv": [os.fspath(word) for word in argv]}, check, timeout, **more)

    def sh(self, script: str, **more: Any) -> str:
        """What a script of the shell prints; it must succeed."""
        return self.run(["sh", "-euc", script], **more).stdout.strip()

    def call(self, function: str, *arguments: object, timeout: float = 60, **more: Any) -> Any:
        """What a function (``module:name``) returns in the guest; it and the arguments must be JSON's."""
        return json.loads(self._ask({"call": function, "argv": arguments}, True, timeout, **more).stdout)

    def hpcpod(self, *words: str, check: bool = True, timeout: float = 60, **more: Any) -> Done:
        """Run ``hpcpod WORDS`` in it to its end, without the front."""
        request = {"call": "tests.testbed.guest_agent:hpcpod", "argv": words}
        return self._ask(request, check, timeout, **more)

    def _ask(
        self,
        request: Mapping[str, object],
        check: bool,
        timeout: float,
        *,
        env: Mapping[str, str] | None = None,
        uid: int = 0,
    ) -> Done:
        whole = {**request, "env": dict(env or {}), "uid": uid, "timeout": timeout}
        self._line.sendall(json.dumps(whole).encode() + b"\n")
        answer = json.loads(self._receive(timeout + 30))
        done = Done(request["argv"], answer["status"], answer["out"], answer["err"])
        assert not check or done.returncode == 0, done
        return done

    def wait_ready(self, seconds: float) -> None:
        assert self._receive(seconds) == b"ready", self._rest

    def _receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            self._line.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                more = self._line.recv(1 << 16)
            except TimeoutError:
                more = b""
            if not more:
                said = self.log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"guest: no answer within {seconds:.0f} s; it said:\n{said}")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.strip()


@contextlib.contextmanager
def booted(scratch: Path) -> Iterator[Guest]:
    """A guest, while the body runs.

    scratch: a directory for sockets, with a short name, on another file system than the root.
    """
    kernel = kernel_directory()
    assert kernel is not None
    image = next((kernel / "boot").glob("vmlinuz-*"))
    release = image.name.removeprefix("vmlinuz-")
    (scratch / "initramfs").write_bytes(_initramfs(kernel, release))
    with contextlib.ExitStack() as stack:
        # In a mount namespace whose root is read-only: nothing in the guest can write to this machine.
        serve = f"mount -t tmpfs t /run && mount -o remount,bind,ro / && exec {VIRTIOFSD}"
        serve += f" --socket-path={scratch}/fs -o source=/ -o cache=always -o sandbox=chroot -o log_level=err"
        words = ["unshare", "--mount", "--propagation=private", "sh", "-c", serve]
        stack.enter_context(_running(words, scratch / "virtiofsd.log"))
        _wait_for(scratch / "fs")
        stack.enter_context(_running(_qemu(image, scratch), scratch / "guest.log"))
        line = stack.enter_context(_connected(scratch / "line"))
        guest = Guest(line, scratch / "guest.log")
        guest.wait_ready(BOOT_SECONDS)
        yield guest


def _qemu(image: Path, scratch: Path) -> list[str]:
    memory = f"memory-backend-memfd,id=m,size={MEGABYTES}M,share=on"
    return [
        *(QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEGABYTES)),
        *(
            "-object",
            memory,
            "-machine",
            "q35,memory-backend=m",
            "-display",
            "none",
            "-nodefaults",
            "-no-reboot",
        ),
        *("-kernel", str(image), "-initrd", f"{scratch}/initramfs"),
        *("-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off"),
        *("-serial", "stdio", "-serial", f"unix:{scratch}/line,server=on,wait=off"),
        *(
            "-chardev",
            f"socket,id=c,path={scratch}/fs",
            "-device",
            "vhost-user-fs-pci,chardev=c,tag=hostroot",
        ),
    ]


@contextlib.contextmanager
def _running(words: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(path: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    _wait_for(path)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        yield line
