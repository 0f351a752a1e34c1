# SPDX-License-Identifier: Apache-2.0
"""A place to unpack images at: with canaries beside the target, as one user or another, bounded in time.

Each attempt runs in a forked child that has become the user; it reports through a pipe what the library
raised.  That costs milliseconds, so a table of a hundred hostile images is tried for each user.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcpod.errors import HpcpodError
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.stores.destination import unpack_to
from hpcpod.log import Silent
from hpcpod.model import Platform
from tests.conftest import Account
from tests.testbed.layouts import Image, write_layout

AMD64 = Platform("linux", "amd64")
SECONDS = 20.0
"""No image of the tests may take longer, whatever it holds."""


@dataclass(frozen=True)
class Outcome:
    """slug: None when the call returned.  value: what it returned.  peak: bytes it took at most."""

    slug: str | None
    message: str
    value: Any
    peak: int
    seconds: float


def _become(uid: int) -> None:
    if os.geteuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _memory(field: str) -> int:
    """Bytes, from proc(5)'s status of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def _report(work: Callable[[], Any]) -> dict[str, Any]:
    before = _memory("VmRSS")
    said: dict[str, Any] = {"slug": None, "message": "", "value": None}
    try:
        said["value"] = work()
    except HpcpodError as error:
        said |= {"slug": error.slug, "message": error.message}
    except BaseException as error:
        said |= {"slug": f"traceback: {type(error).__name__}", "message": str(error)}
    return said | {"peak": _memory("VmHWM") - before}


def call_as(uid: int, work: Callable[[], Any], seconds: float = SECONDS) -> Outcome:
    """Call work in a child that is this user; its result must be JSON.  Raises TimeoutError."""
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _become(uid)
            os.write(writer, json.dumps(_report(work)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        late = not select.select([reader], [], [], seconds)[0]
        if late:
            os.kill(child, signal.SIGKILL)
        said = os.read(reader, 1 << 20)
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    if late:
        raise TimeoutError(f"no end after {seconds} s")
    return Outcome(**json.loads(said), seconds=time.monotonic() - start)


def scan(root: Path) -> dict[str, tuple[Any, ...]]:
    """What is below a directory: type and mode, then content and number of links, or a link's target."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.filemode(status.st_mode)
        rest: tuple[Any, ...] = ()
        if stat.S_ISLNK(status.st_mode):
            rest = (str(path.readlink()),)
        elif stat.S_ISREG(status.st_mode):
            rest = (
                path.read_bytes() if os.geteuid() == 0 or status.st_mode & 0o400 else b"",
                status.st_nlink,
            )
        found[str(path.relative_to(root))] = (kind, *rest)
    return found


class Place:
    """``HOME/place``, with the target ``out`` and two canaries beside it."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.path = account.home / "place"
        self.target = self.path / "out"
        for canary in (self.path / "canary", account.home / "canary"):
            canary.mkdir(parents=True)
            (canary / "file").write_text("alive")
            (canary / "file").chmod(0o600)
            (canary / "link").symlink_to("file")
        for path in (account.home, *account.home.rglob("*")):
            os.chown(path, account.uid, account.uid, follow_symlinks=False)
        self._canaries = self._scan_canaries()

    def _scan_canaries(self) -> list[dict[str, tuple[Any, ...]]]:
        return [scan(path / "canary") for path in (self.path, self.account.home)]

    def layout(self, image: Image | Mapping[str, Image], **more: Any) -> str:
        """Write the image as a layout; returns the reference."""
        return f"oci:{write_layout(self.account.home / 'layout', image, **more)}"

    def unpack(self, reference: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Unpack to the target, and check what must be so whatever happens."""

        def work() -> dict[str, int]:
            _, unpacked = unpack_to(parse_reference(reference), str(self.target), AMD64, limits, Silent())
            return vars(unpacked)

        outcome = call_as(self.account.uid, work)
        assert self._scan_canaries() == self._canaries
        left = {path.name for path in self.path.iterdir()}
        assert left == ({"canary", "out"} if outcome.slug is None else {"canary"})
        assert outcome.message.isprintable()
        return outcome

    def refused(self, reference: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Unpack; it must be refused for the image's own fault."""
        outcome = self.unpack(reference, limits)
        assert outcome.slug is not None, f"accepted: {scan(self.target)}"
        assert outcome.slug.startswith("image-"), f"{outcome.slug}: {outcome.message}"
        return outcome

    def tree(self, reference: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, tuple[Any, ...]]:
        """Unpack; it must be accepted.  Returns what is in the tree."""
        outcome = self.unpack(reference, limits)
        assert outcome.slug is None, f"{outcome.slug}: {outcome.message}"
        return scan(self.target)
